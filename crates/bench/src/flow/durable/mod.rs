//! `flow.durable3.{64,512}`: durable traces of three no-op nodes on SQLite, so many at once, each emitted, run and answered
//! before the next of its task.
//!
//! Payload: 256 bytes of JSON, handed on by every node. Both sides sync as the product does (`synchronous = FULL`), on the
//! same disk, each round on a new database. Our nodes have as much concurrency and room as there are traces at once, and
//! events go to an observer that counts.
//!
//! **The peer writes the records of ours.** Before the rounds one trace runs through the same flow on a store that keeps
//! what each commit changed ([`seen`]): the records it wrote with keys and values, those it removed, its journal rows. The
//! peer then writes exactly these batches for each of its traces, by hand-written group commit through one writer thread
//! ([`crate::store::raw`]): same number and order of batches, same values, same keys but for the time-ordered id of the trace
//! in them, which is fresh. As in ours, a task waits for each batch before it goes on, but for the last, which removes what
//! was read and for which nobody waits. So it stores what ours stores and waits as often, and does nothing else: no flow, no
//! encoding, no checks, no expectations, no hash chain, no signed head. `batches`, `puts`, `removes`, `rows` and `bytes` say
//! what one trace writes.

mod ours;
mod peer;
mod seen;

use std::time::Duration;

use crate::figure::Figure;
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Ratio to the hand-written group commit.
const BAR: f64 = 0.5;
/// Traces at once.
const TRACES: [usize; 2] = [64, 512];

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 400 } else { 4_000 });
    let disk = crate::scratch()?;
    let batches = crate::store::runtime()?.block_on(seen::of_one_trace())?;
    TRACES
        .iter()
        .map(|traces| {
            let [ours, peer] =
                interleaved([&mut || ours::rate(disk.path(), *traces, time), &mut || {
                    peer::rate(disk.path(), &batches, *traces, time)
                }])?;
            let name = format!("flow.durable3.{traces}");
            let figure = Figure::rate(name, "trace/s", BAR, &ours)
                .against_peer(&peer)
                .limit(&peer);
            Ok(seen::Written::of(&batches).tell(figure))
        })
        .collect()
}
