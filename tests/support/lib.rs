//! What the black-box tests share: a server in this process ([`InProcess`]), a server as a process
//! of its own ([`Process`]), and a raw [`Connection`] to either. Nothing here knows what a reply
//! should say; the tests do.
//!
//! Whoever waits here waits in a blocking read that times out, never for a duration. What goes
//! wrong panics: these are tests.

mod in_process;
mod plain;
mod process;
mod wire;

pub use self::{
    in_process::InProcess,
    plain::{bin, from_hex, from_map, to_hex, to_map},
    process::{Ended, Process},
    wire::{Connection, PATIENCE, framed, prove},
};
