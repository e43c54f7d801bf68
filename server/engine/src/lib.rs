//! The pure state machine of a ganger shard.

pub mod change;
pub mod command;
pub mod facts;
pub mod records;
