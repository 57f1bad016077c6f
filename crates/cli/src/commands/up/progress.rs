//! Progress of many replicas: on a terminal a list that is drawn over, else one line per change.

use std::fmt::Write as _;

use volary::ops::api::ReplicaView;

use crate::{commands::ps, ui::Ui};

/// What was shown last.
#[derive(Debug)]
pub struct Progress {
    ui: Ui,
    shown: Vec<Row>,
    drawn: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    replica: String,
    state: String,
    ready: bool,
    reason: String,
}

impl Progress {
    /// Nothing is shown yet.
    pub const fn new(ui: Ui) -> Self {
        Self {
            ui,
            shown: Vec::new(),
            drawn: 0,
        }
    }

    /// Takes what is the case as shown already, so that only what changes is told.
    pub fn begin(&mut self, replicas: &[ReplicaView]) {
        self.shown = replicas.iter().map(row).collect();
    }

    /// Shows what has changed since the last time.
    pub fn show(&mut self, replicas: &[ReplicaView]) {
        let rows: Vec<Row> = replicas.iter().map(row).collect();
        if rows == self.shown {
            return;
        }
        if self.ui.live {
            self.redraw(replicas, &rows);
        } else {
            for row in rows.iter().filter(|row| !self.shown.contains(row)) {
                self.ui.say(words(row));
            }
        }
        self.shown = rows;
    }

    fn redraw(&mut self, replicas: &[ReplicaView], rows: &[Row]) {
        let mut text = String::new();
        if self.drawn > 0 {
            write!(text, "\x1b[{}A\x1b[J", self.drawn).expect("writing to a String cannot fail");
        }
        for (replica, row) in replicas.iter().zip(rows) {
            let mark = self
                .ui
                .paint_talk(ps::style(replica), if row.ready { "●" } else { "○" });
            writeln!(text, "  {mark} {}", words(row)).expect("writing to a String cannot fail");
        }
        self.ui.draw(&text);
        self.drawn = rows.len();
    }
}

fn row(replica: &ReplicaView) -> Row {
    Row {
        replica: replica.replica.to_string(),
        state: replica.state.clone(),
        ready: replica.ready,
        reason: replica.reason.clone().unwrap_or_default(),
    }
}

fn words(row: &Row) -> String {
    let ready = if row.ready && row.state != "ready" {
        ", ready"
    } else {
        ""
    };
    let reason = if row.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", crate::ui::tame(&row.reason))
    };
    format!("{}: {}{ready}{reason}", row.replica, row.state)
}
