//! The server.

mod activity;
mod config;
mod listen;

pub use self::{
    config::{DEFAULT_DRAIN, Exposure, Limits, MetricsAccess, OpsConfig, SocketConfig, TcpConfig},
    listen::SOCKET_PATH_MAX,
};
