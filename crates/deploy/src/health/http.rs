//! One `GET` over a fresh connection. Only the status is of interest; the body is cut at a bound.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::HttpCheck;

/// Body read at most, bytes: enough for the reason in an error page.
const MAX_BODY: usize = 4 << 10;
/// Part of the body shown when a probe fails, characters.
const SHOWN: usize = 200;

/// Asks and judges; the text says what came instead of health.
pub(super) async fn check(check: &HttpCheck) -> Result<(), String> {
    let stream = TcpStream::connect((check.host.as_str(), check.port))
        .await
        .map_err(|error| format!("connect to {}:{}: {error}", check.host, check.port))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    let exchange = async move {
        let response = sender.send_request(request(check)?).await.map_err(text)?;
        let status = response.status().as_u16();
        let healthy = match check.expect_status {
            Some(wanted) => status == wanted,
            None => (200..400).contains(&status),
        };
        if healthy {
            return Ok(());
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
        let shown: String = String::from_utf8_lossy(&bytes)
            .chars()
            .take(SHOWN)
            .collect();
        Err(format!("status {status}: {}", shown.trim()))
    };
    tokio::pin!(exchange);
    // The connection is driven here, so that it ends with the probe.
    tokio::select! {
        result = &mut exchange => result,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(text(error)),
        }
    }
}

fn request(check: &HttpCheck) -> Result<hyper::Request<Empty<Bytes>>, String> {
    let mut request = hyper::Request::get(&check.path)
        .header(
            hyper::header::HOST,
            format!("{}:{}", check.host, check.port),
        )
        .header(hyper::header::CONNECTION, "close");
    for (name, value) in &check.headers {
        request = request.header(name, value);
    }
    request
        .body(Empty::new())
        .map_err(|error| error.to_string())
}

fn text(error: hyper::Error) -> String {
    error.to_string()
}
