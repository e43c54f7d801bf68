//! What the engine does, told as a specification: one behaviour a test, over a store in memory.

mod batches;
mod cancel;
mod cron;
mod dead;
mod expiry;
mod fetching;
mod leases;
mod limits;
mod order;
mod producers;
mod purge;
mod retries;
mod sessions;
mod settings;
mod storage;
mod unique;
