//! The ganger server, and the command line around it.
//!
//! A request travels `listener` → `session` → `driver` → engine → `store`; its reply comes back
//! once what it says is durable.

pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
mod data_dir;
pub mod driver;
pub mod listener;
mod reload;
pub mod server;
pub mod session;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod upkeep;

pub use self::{
    reload::{Control, ReloadError},
    server::{RecoveredCounts, ServeError, Server},
};
