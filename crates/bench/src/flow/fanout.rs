//! `flow.fanout8.{producer,traces}`: one node, eight after it, all of them joined; each trace answered. Events are on.
//!
//! Peer: [`super::hand::Fanout`]; and PenguiFlow's fan-out to eight and a join of eight, with one producer.

use std::time::Duration;

use super::chain::hand_rate;
use super::hand;
use super::load::Load;
use super::ours;
use super::recorded::FANOUT;
use crate::figure::Figure;
use crate::rounds::interleaved;
use crate::{Failure, Plan};

/// Ratio to what is written by hand: nothing is fused here, so as for a chain that is not.
const BAR: f64 = 0.5;
/// How many times as fast as PenguiFlow.
const TIMES: f64 = 100.0;

pub fn measure(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let time = Duration::from_millis(if plan.quick { 100 } else { 600 });
    let mut figures = Vec::new();
    for load in Load::ALL {
        let [ours, peer] = interleaved([&mut || our_rate(load, time), &mut || {
            hand_rate(load, time, hand::Fanout::start)
        }])?;
        let name = format!("flow.fanout8.{}", load.as_str());
        if load == Load::Producer {
            let pengui = Figure::rate(format!("{name}.penguiflow"), "join/s", TIMES, &ours);
            figures.push(pengui.against_recorded(FANOUT));
        }
        figures.push(Figure::rate(name, "join/s", BAR, &ours).against_peer(&peer));
    }
    Ok(figures)
}

fn our_rate(load: Load, time: Duration) -> Result<f64, Failure> {
    let flow = ours::fanout()?;
    crate::store::runtime()?.block_on(async {
        let running = flow.start(ours::observed(true).0);
        let rate = load.run(running.clone(), time).await?;
        ours::stop(&running).await?;
        Ok(rate)
    })
}
