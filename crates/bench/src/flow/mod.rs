//! The `flow` group: typed dataflow against what one would write by hand, and against PenguiFlow as it was measured once.
//!
//! | module | figures |
//! |---|---|
//! | [`chain`] | `flow.chain{1,3,10}.{producer,traces}.{fused,unfused,promised,penguiflow}` |
//! | [`fanout`] | `flow.fanout8.{producer,traces}` |
//! | [`latency`] | `flow.latency.{100,half}.{p50,p99}`, open loop |
//! | [`neighbour`] | `flow.neighbour.{flooding,failing}` |
//! | [`memory`] | `flow.memory`, `flow.leak` |
//! | [`logging`] | `flow.logging` |
//! | [`cancel`] | `flow.cancel10k.{one,all}` |
//! | [`stream`] | `flow.stream` |
//! | [`durable`] | `flow.durable3.{64,512}` |
//!
//! Everything runs on a fresh runtime of two workers for every round; ours tells its events to an observer that counts.

pub mod alloc;
mod cancel;
mod chain;
mod durable;
mod fanout;
mod hand;
mod latency;
mod load;
mod logging;
mod memory;
mod neighbour;
mod ours;
mod promised;
mod recorded;
mod stream;

use crate::figure::Figure;
use crate::{Failure, Plan};

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let parts: [crate::Measure; 9] = [
        chain::measure,
        fanout::measure,
        latency::measure,
        neighbour::measure,
        memory::measure,
        logging::measure,
        cancel::measure,
        stream::measure,
        durable::measure,
    ];
    let mut figures = Vec::new();
    for measure in parts {
        figures.extend(measure(plan)?);
    }
    Ok(figures)
}
