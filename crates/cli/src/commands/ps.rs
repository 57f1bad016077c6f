//! `volary ps`: the replicas of a running fleet.

use std::path::PathBuf;

use clap::Args;
use volary::ops::api::{PortView, ReplicaView};
use volary_kernel::{Clock, SystemClock, Timestamp};

use crate::{
    client::Node,
    error::Outcome,
    exit::Exit,
    settle::Context,
    ui::{
        self, Ui,
        table::{Cell, Table},
        time,
    },
};

/// `volary ps`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of the fleet.
    #[arg(value_name = "DIR")]
    fleet: Option<PathBuf>,
    /// Print only the names of the replicas, one per line.
    #[arg(short, long)]
    quiet: bool,
}

/// Asks the node and prints.
pub async fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let node = Node::find(context, arguments.fleet.as_deref())?;
    let replicas = node.replicas().await?;
    if context.ui.json {
        context.ui.document(&replicas)?;
    } else if arguments.quiet {
        for replica in &replicas {
            context.ui.line(&replica.replica)?;
        }
    } else {
        context
            .ui
            .line(table(&context.ui, &replicas, SystemClock.wall()))?;
    }
    Ok(Exit::Ok)
}

/// The table of `volary ps`; also what `volary up` ends its progress with.
pub fn table(ui: &Ui, replicas: &[ReplicaView], now: Timestamp) -> String {
    let mut table = Table::new([
        "AGENT", "REPLICA", "BACKEND", "STATE", "READY", "PID", "RESTARTS", "STARTED", "PORTS",
        "REASON",
    ]);
    for replica in replicas {
        table.row([
            (&replica.agent).into(),
            (&replica.replica).into(),
            (&replica.backend).into(),
            Cell::styled(&replica.state, style(replica)),
            (if replica.ready { "yes" } else { "no" }).into(),
            process(replica).into(),
            replica.restarts.into(),
            time::ago(now, replica.started_at).into(),
            ports(&replica.ports).into(),
            replica.reason.as_deref().unwrap_or_default().into(),
        ]);
    }
    table.render(ui)
}

/// How a replica's state is coloured.
pub fn style(replica: &ReplicaView) -> anstyle::Style {
    match (replica.ready, replica.reason.is_some()) {
        (true, _) => ui::GOOD,
        (false, false) => ui::WARN,
        (false, true) => ui::BAD,
    }
}

fn process(replica: &ReplicaView) -> String {
    let container = replica
        .container
        .as_deref()
        .map(|id| id.chars().take(12).collect());
    container
        .or_else(|| replica.pid.map(|pid| pid.to_string()))
        .unwrap_or_else(|| "-".into())
}

fn ports(ports: &[PortView]) -> String {
    let one = |port: &PortView| match port.host_port {
        Some(host) if host != port.port => format!("{host}->{}/{}", port.port, port.protocol),
        _ => format!("{}/{}", port.port, port.protocol),
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ColorChoice;
    use serde_json::json;

    #[test]
    fn the_table_shows_what_runs_since_when_and_what_is_wrong() {
        let replicas: Vec<ReplicaView> = serde_json::from_value(json!([
            {"agent": "indexer", "replica": "indexer-0", "tenant": "default", "backend": "process", "state": "ready",
             "ready": true, "pid": null, "restarts": 0, "started_at": null, "ports": []},
            {"agent": "web", "replica": "web-0", "tenant": "default", "backend": "process", "state": "crash_loop",
             "ready": false, "pid": 4242, "restarts": 7, "started_at": "2026-11-21T11:57:00Z", "reason": "exit code 1",
             "ports": [{"name": "http", "port": 80, "host_port": 8080, "protocol": "tcp"}]},
        ]))
        .unwrap();
        let ui = Ui::new(false, ColorChoice::Never);
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        assert_eq!(
            table(&ui, &replicas, now),
            "\
AGENT     REPLICA     BACKEND   STATE        READY   PID    RESTARTS   STARTED   PORTS          REASON
indexer   indexer-0   process   ready        yes     -      0          -
web       web-0       process   crash_loop   no      4242   7          3m ago    8080->80/tcp   exit code 1"
        );
    }
}
