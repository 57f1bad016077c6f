//! Tests of the journal entries of messages.

use super::*;
use crate::test_util::{message, name};

fn body(event: &Event<'_>) -> Value {
    serde_json::from_slice(&event.record().body).unwrap()
}

#[test]
fn an_accepted_message_can_be_read_back_from_its_entry() {
    let message = message("a", "t", "hello");
    let targets = [name("b")];
    let entry = Event::Accepted {
        message: &message,
        encoded: &codec::encode(&message),
        targets: &targets,
        peers: &[],
        from: None,
    }
    .record();
    assert_eq!(
        (&*entry.kind, entry.agent, entry.trace),
        ("message.accepted", Some(name("a")), Some(message.trace()))
    );
    assert_eq!(message_in(&entry.body), Ok(message));
}

#[test]
fn a_refused_message_leaves_no_content_behind() {
    let message = message("a", "t", "canary");
    let admission = Admission::Refused(Refusal::Secret);
    let body = body(&Event::Refused {
        message: &message,
        admission: &admission,
    });
    assert_eq!(body["admission"]["refused"]["why"], "secret");
    assert!(body.get("message").is_none() && !body.to_string().contains("canary"));
    let dropped = Admission::Dropped {
        hook: "h".into(),
        reason: "r".into(),
    };
    assert_eq!(
        Event::Refused {
            message: &message,
            admission: &dropped
        }
        .kind(),
        kind::DROPPED
    );
}

#[test]
fn a_body_of_another_version_is_refused() {
    let found = message_in(br#"{"v":2,"message":""}"#);
    assert_eq!(
        found,
        Err(DecodeError::Version {
            what: "journal body",
            found: 2,
            known: 1
        })
    );
    assert!(message_in(b"[]").is_err());
}

#[test]
fn a_delivery_event_names_the_delivery_and_its_attempt() {
    let delivery = DeliveryRef {
        id: Uid::generate(),
        message: None,
        agent: name("b"),
        tenant: Tenant::default(),
        trace: TraceId::generate(),
        attempt: 3,
        kind: DeliveryKind::Dispatch,
        is_replayed: false,
    };
    let event = Event::Failed {
        delivery: &delivery,
        reason: "exit status 1",
        retry_in: Some(Duration::from_nanos(190_834_555)),
    };
    let body = body(&event);
    assert_eq!(
        (&body["v"], &body["attempt"], &body["kind"]),
        (&json!(1), &json!(3), &json!("dispatch"))
    );
    assert_eq!(body["retry_in"], "190ms");
    assert_eq!(event.record().agent, Some(name("b")));
}
