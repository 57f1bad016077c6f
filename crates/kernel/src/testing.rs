//! Waiting in tests: for a condition, never for a time.

use std::time::Duration;

use crate::clock;

/// Waits until `condition` holds, at most for `deadline`; says whether it held. Looks every 2 ms.
pub async fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    clock::timeout(deadline, async {
        while !condition() {
            clock::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .is_ok()
}
