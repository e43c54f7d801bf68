//! What of the configuration takes effect while the server runs, and the state that it tells on
//! request. Which signal asks for it is the command line's; everything else needs a restart.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    auth::{NoRandomness, Tokens},
    config::{Config, ConfigError},
    driver::Core,
    server::Shared,
    session::Patience,
};

/// Settings, or tables of settings, that a running server takes over. The level of the log is the
/// command line's to change.
const RELOADED: [&str; 10] = [
    "auth.token",
    "cron",
    "limits.connections_max",
    "limits.connections_per_address_max",
    "limits.frame_timeout",
    "limits.hello_bytes_max",
    "limits.hello_timeout",
    "limits.idle_timeout",
    "limits.in_flight_bytes_max",
    "limits.write_stall_timeout",
];

/// What can change while the server runs; replaced as a whole.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) tokens: Tokens,
    pub(crate) connections_max: usize,
    pub(crate) connections_per_address_max: u32,
    pub(crate) hello_bytes_max: usize,
    pub(crate) in_flight_bytes_max: usize,
    pub(crate) patience: Patience,
}

impl Live {
    pub(crate) fn new(config: &Config) -> Result<Self, NoRandomness> {
        let limits = &config.limits;
        Ok(Self {
            tokens: Tokens::new(&config.auth.token)?,
            connections_max: usize::try_from(limits.connections_max).unwrap_or(usize::MAX),
            connections_per_address_max: limits.connections_per_address_max,
            hello_bytes_max: limits.hello_bytes_max.bytes(),
            in_flight_bytes_max: limits.in_flight_bytes_max.bytes(),
            patience: Patience {
                hello: limits.hello_timeout.0,
                frame: limits.frame_timeout.0,
                idle: limits.idle_timeout.0,
                write_stall: limits.write_stall_timeout.0,
            },
        })
    }
}

/// Why a running server keeps its old configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// With the address that it listens on, the new one does not go.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system gave no random bytes.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// A running server's side of signals. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control(pub(crate) Arc<Shared>);

impl Control {
    /// Takes over what can change, and ends the connections whose token is gone or is another now.
    /// Returns the settings that differ and need a restart.
    ///
    /// # Errors
    /// When the new configuration does not go with the address that the server listens on; nothing
    /// has changed then.
    pub fn reload(&self, old: &Config, new: &Config) -> Result<Vec<String>, ReloadError> {
        let in_force = Config {
            listen: old.listen,
            ..new.clone()
        };
        in_force.check()?;
        self.0.set_live(Live::new(new)?);
        self.0.shards.take_file_crons(&new.file_crons()?);
        self.0.connections.end_strangers(&self.0.live().tokens);
        Ok(restart_needed(&old.settings(), &new.settings()))
    }

    /// Returns once every shard has let somebody look at it.
    pub fn reach_all(&self) {
        for shard in self.0.shards.iter() {
            shard.look(|_core| ());
        }
    }

    /// Writes what there is into the log: one line for the server, one for each shard.
    pub fn dump(&self) {
        let shared = &self.0;
        let (unanswered, unsent_bytes) = shared.connections.outstanding();
        tracing::info!(
            connections = shared.connections.count(),
            unanswered,
            unsent_bytes,
            is_draining = shared.is_draining(),
            is_short_of_space = shared.is_short_of_space(),
            "state of the server"
        );
        for (number, shard) in shared.shards.iter().enumerate() {
            let (leases, heads, undurable_bytes, open_group) = shard.look(|core: &Core| {
                let engine = core.engine();
                let open_group = engine.open_group().0;
                (
                    engine.leases(),
                    engine.heads(),
                    core.undurable_bytes(),
                    open_group,
                )
            });
            let (heads, head_bytes) = heads;
            tracing::info!(
                shard = number,
                leases,
                heads,
                head_bytes,
                undurable_bytes,
                open_group,
                "state of a shard"
            );
        }
    }
}

/// Names of settings that differ and are not taken over.
fn restart_needed(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let names = old.keys().chain(new.keys());
    let mut changed: Vec<String> = names
        .filter(|name| old.get(*name) != new.get(*name))
        .filter(|name| *name != "log.level" && !RELOADED.contains(&name.as_str()))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reloaded_is_a_setting_and_marked_so_in_the_file() {
        let settings = Config::default().settings();
        for name in RELOADED {
            assert!(settings.contains_key(name), "{name}");
        }
        let marked = Config::ANNOTATED.matches("Reloaded").count();
        assert_eq!(marked, RELOADED.len() + 1, "and the level of the log");
    }

    #[test]
    fn a_change_that_needs_a_restart_is_named() {
        let old = Config::default();
        let mut new = old.clone();
        new.shards = 2;
        new.limits.connections_max = 5;
        new.log.level = "debug".to_owned();
        assert_eq!(restart_needed(&old.settings(), &new.settings()), ["shards"]);
    }
}
