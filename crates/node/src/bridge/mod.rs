//! Where domains meet: nothing else in the workspace knows two of them.
//!
//! | file | from → to |
//! |---|---|
//! | [`dispatch`] | context changes → inboxes |
//! | [`handler`] | inboxes → handler processes → [`settle`] |
//! | [`settle`] | an agent's acknowledgement and actions → one commit |
//! | [`lifecycle`] | what happens to replicas → the journal |

pub(crate) mod directory;
pub(crate) mod dispatch;
pub(crate) mod handler;
pub(crate) mod lifecycle;
pub(crate) mod settle;
pub(crate) mod task;
