//! The documents of `/health` and `/ready`, made from the register of the node. Never waits for anybody.

use axum::http::StatusCode;
use volary_kernel::{
    ready::{Readiness, Report},
    secret::Redactor,
};

use crate::api::{CheckView, HealthDocument, HealthStatus};

fn document(
    report: Report,
    good: HealthStatus,
    bad: HealthStatus,
    redactor: &Redactor,
) -> HealthDocument {
    HealthDocument {
        status: if report.ok { good } else { bad },
        checks: views(report, redactor),
    }
}

/// The checks of a report as they are shown.
pub(crate) fn views(report: Report, redactor: &Redactor) -> Vec<CheckView> {
    let checks = report.checks.into_iter().map(|check| CheckView {
        name: check.name,
        ok: check.ok,
        reason: check
            .reason
            .map(|reason| redactor.redact(&reason).into_owned()),
        last_beat_seconds: check.last_beat_seconds,
    });
    checks.collect()
}

fn answer(document: HealthDocument) -> (StatusCode, HealthDocument) {
    let well = matches!(document.status, HealthStatus::Healthy | HealthStatus::Ready);
    (
        if well {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        document,
    )
}

/// `/health`: do the loops turn?
pub(crate) fn health(readiness: &Readiness, redactor: &Redactor) -> (StatusCode, HealthDocument) {
    answer(document(
        readiness.health(),
        HealthStatus::Healthy,
        HealthStatus::Unhealthy,
        redactor,
    ))
}

/// `/ready`: can work be taken? Never while `stopping`.
pub(crate) fn ready(
    readiness: &Readiness,
    redactor: &Redactor,
    stopping: bool,
) -> (StatusCode, HealthDocument) {
    let mut document = document(
        readiness.ready(),
        HealthStatus::Ready,
        HealthStatus::NotReady,
        redactor,
    );
    if stopping {
        document.status = HealthStatus::NotReady;
        let reason = Some("the node is stopping".to_owned());
        document.checks.push(CheckView {
            name: "ops".to_owned(),
            ok: false,
            reason,
            last_beat_seconds: None,
        });
    }
    answer(document)
}
