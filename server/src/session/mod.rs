//! One connection, in parts that have no IO: what is agreed on ([`handshake`]), and which request
//! is legal when ([`state`]).

pub mod handshake;
pub mod state;
