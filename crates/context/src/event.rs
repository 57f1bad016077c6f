//! What happens in this domain: the closed set that journal rows, live feed and logs are made from.
//!
//! All of them are records: each is committed, together with the state change it tells of where there is one.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use volary_kernel::{Name, Tenant};
use volary_store::Entry;

use crate::{page::PageChange, source::PageProblem};

/// Version of the bodies.
const BODY_VERSION: u32 = 1;

/// One happening.
#[derive(Debug, Clone)]
pub enum Event {
    /// `page.changed`: a page was added, replaced or invalidated.
    PageChanged(Arc<PageChange>),
    /// `dispatch.enqueued`: a change was put into an agent's inbox. Its cause is the `page.changed`.
    DispatchEnqueued {
        /// The subscription it matched.
        subscription: Arc<str>,
        /// Whose inbox.
        agent: Name,
        /// The change.
        change: Arc<PageChange>,
        /// What the inbox calls it.
        item: String,
    },
    /// `dispatch.refused`: a change could not be put into an inbox and never will be.
    DispatchRefused {
        /// The subscription it matched.
        subscription: Arc<str>,
        /// Whose inbox.
        agent: Name,
        /// The change.
        change: Arc<PageChange>,
        /// Why.
        reason: String,
    },
    /// `dispatch.blocked`: changes wait because an inbox is full.
    DispatchBlocked {
        /// The source whose changes wait.
        source: Name,
        /// Whose inbox.
        agent: Name,
        /// What is full.
        reason: String,
    },
    /// `dispatch.unblocked`: no change waits any more.
    DispatchUnblocked {
        /// The source.
        source: Name,
    },
    /// `source.mapped`: a source is watched from now on.
    SourceMapped {
        /// The source.
        source: Name,
        /// What it is mapped into.
        scope: String,
    },
    /// `source.unmapped`: a source is no longer watched.
    SourceUnmapped {
        /// The source.
        source: Name,
    },
    /// `source.caught_up`: everything that changed while nobody watched has been told.
    SourceCaughtUp {
        /// The source.
        source: Name,
        /// How many pages there are.
        pages: usize,
    },
    /// `source.rescan`: everything is looked at again.
    SourceRescan {
        /// The source.
        source: Name,
        /// Why.
        reason: &'static str,
    },
    /// `source.fell_back`: a warning that changes are looked for at intervals.
    SourceFellBack {
        /// The source.
        source: Name,
        /// Why.
        reason: String,
        /// The interval.
        every: Duration,
    },
    /// `source.away`: the source cannot be reached.
    SourceAway {
        /// The source.
        source: Name,
        /// Why.
        reason: String,
    },
    /// `source.back`: the source can be reached again.
    SourceBack {
        /// The source.
        source: Name,
    },
    /// `source.failed`: the watcher ended with an error; it is started again after a back-off.
    SourceFailed {
        /// The source.
        source: Name,
        /// The error.
        reason: String,
    },
    /// `page.problem`: a page is left out, or stands under another name.
    PageProblem {
        /// The source.
        source: Name,
        /// Its path.
        path: Arc<str>,
        /// Why.
        problem: PageProblem,
    },
}

#[derive(Serialize)]
struct Changed<'a> {
    v: u32,
    #[serde(flatten)]
    change: &'a PageChange,
}

impl Event {
    /// The kind of its journal rows.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PageChanged(_) => "page.changed",
            Self::DispatchEnqueued { .. } => "dispatch.enqueued",
            Self::DispatchRefused { .. } => "dispatch.refused",
            Self::DispatchBlocked { .. } => "dispatch.blocked",
            Self::DispatchUnblocked { .. } => "dispatch.unblocked",
            Self::SourceMapped { .. } => "source.mapped",
            Self::SourceUnmapped { .. } => "source.unmapped",
            Self::SourceCaughtUp { .. } => "source.caught_up",
            Self::SourceRescan { .. } => "source.rescan",
            Self::SourceFellBack { .. } => "source.fell_back",
            Self::SourceAway { .. } => "source.away",
            Self::SourceBack { .. } => "source.back",
            Self::SourceFailed { .. } => "source.failed",
            Self::PageProblem { .. } => "page.problem",
        }
    }

    /// Its journal entry. The cause is left to the caller.
    pub fn record(&self, tenant: &Tenant) -> Entry {
        let entry = Entry::new(self.kind(), tenant.clone(), self.body());
        match self {
            Self::PageChanged(change) => entry.trace(change.trace),
            Self::DispatchEnqueued { agent, change, .. }
            | Self::DispatchRefused { agent, change, .. } => {
                entry.trace(change.trace).agent(agent.clone())
            }
            Self::DispatchBlocked { agent, .. } => entry.agent(agent.clone()),
            _ => entry,
        }
    }

    fn body(&self) -> Vec<u8> {
        if let Self::PageChanged(change) = self {
            let body = Changed {
                v: BODY_VERSION,
                change,
            };
            return serde_json::to_vec(&body).expect("a change is JSON: its maps have text keys");
        }
        let mut fields = self.fields();
        fields["v"] = BODY_VERSION.into();
        fields.to_string().into_bytes()
    }

    fn fields(&self) -> Value {
        match self {
            Self::PageChanged(change) => json!({"id": change.id}),
            Self::DispatchEnqueued {
                subscription,
                change,
                item,
                ..
            } => {
                json!({"subscription": subscription, "item": item, "change": change.id, "page": change.page.id,
                       "kind": change.kind.name()})
            }
            Self::DispatchRefused {
                subscription,
                change,
                reason,
                ..
            } => {
                json!({"subscription": subscription, "reason": reason, "change": change.id, "page": change.page.id,
                       "kind": change.kind.name()})
            }
            Self::DispatchBlocked { source, reason, .. }
            | Self::SourceAway { source, reason }
            | Self::SourceFailed { source, reason } => json!({"source": source, "reason": reason}),
            Self::DispatchUnblocked { source }
            | Self::SourceUnmapped { source }
            | Self::SourceBack { source } => {
                json!({"source": source})
            }
            Self::SourceMapped { source, scope } => json!({"source": source, "scope": scope}),
            Self::SourceCaughtUp { source, pages } => json!({"source": source, "pages": pages}),
            Self::SourceRescan { source, reason } => json!({"source": source, "reason": reason}),
            Self::SourceFellBack {
                source,
                reason,
                every,
            } => {
                let every = volary_kernel::text::format_duration(*every);
                json!({"source": source, "reason": reason, "every": every})
            }
            Self::PageProblem {
                source,
                path,
                problem,
            } => {
                json!({"source": source, "path": path, "problem": problem.code(), "reason": problem.to_string()})
            }
        }
    }
}
