//! Running a plan: stages, traces, time.

use tokio_util::sync::ReusableBoxFuture;

use crate::{error::NodeError, graph::plan::Step};

/// Where the future of an attempt lives; its allocation is used again.
pub(crate) type Slot = ReusableBoxFuture<'static, Result<Step, NodeError>>;
