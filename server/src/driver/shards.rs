//! All shards of a server, and which namespace lives in which.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use ganger_engine::{command::Command, cron::file::FileCron};
use ganger_protocol::NamespaceName;

use super::Shard;

/// The shards, and where each namespace lives. A namespace lives whole in one shard.
#[derive(Debug)]
pub struct Shards {
    shards: Vec<Arc<Shard>>,
    homes: Mutex<BTreeMap<NamespaceName, usize>>,
}

/// Two shards name the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shards {first} and {second} both have the namespace {namespace}")]
pub struct SharedNamespace {
    /// The namespace.
    pub namespace: NamespaceName,
    /// One of the shards.
    pub first: usize,
    /// The other one.
    pub second: usize,
}

impl Shards {
    /// The shards with the namespaces that they were found to have.
    ///
    /// # Errors
    /// When two shards have the same namespace.
    pub fn new(
        shards: Vec<(Arc<Shard>, BTreeSet<NamespaceName>)>,
    ) -> Result<Self, SharedNamespace> {
        let mut homes = BTreeMap::new();
        let mut all = Vec::new();
        for (second, (shard, namespaces)) in shards.into_iter().enumerate() {
            for namespace in namespaces {
                if let Some(first) = homes.insert(namespace.clone(), second) {
                    return Err(SharedNamespace {
                        namespace,
                        first,
                        second,
                    });
                }
            }
            all.push(shard);
        }
        Ok(Self {
            shards: all,
            homes: Mutex::new(homes),
        })
    }

    /// The shard of a namespace. A new one goes where the fewest are.
    pub fn home(&self, namespace: &NamespaceName) -> Option<Arc<Shard>> {
        let mut homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
        let shard = match homes.get(namespace) {
            Some(shard) => *shard,
            None => {
                let taken = |shard: &usize| homes.values().filter(|home| *home == shard).count();
                let shard = (0..self.shards.len()).min_by_key(taken)?;
                homes.insert(namespace.clone(), shard);
                shard
            }
        };
        self.shards.get(shard).map(Arc::clone)
    }

    /// Gives each shard the cron entries of the configuration that are its own.
    pub fn take_file_crons(&self, crons: &[FileCron]) {
        for cron in crons {
            // A namespace that is new gets its home here.
            self.home(cron.namespace());
        }
        for (number, shard) in self.shards.iter().enumerate() {
            let homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
            let own = |cron: &&FileCron| homes.get(cron.namespace()) == Some(&number);
            let own = crons.iter().filter(own).cloned().collect();
            drop(homes);
            shard.submit([Command::FileCrons(own)]);
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Shard>> {
        self.shards.iter()
    }
}
