//! The journal: batches of records in one transaction each, snapshots that replace old ones, and all
//! that a start reads.

use std::sync::Arc;

use sqlx::{Sqlite, Transaction};
use time::OffsetDateTime;

use super::{Store, StoreError, database, from_json, to_json};
use crate::state::Action;
use crate::state::record::{Entry, Found, KnownLease, Snapshot};
use crate::view::DeployedWorkflow;

/// How many records are kept behind a snapshot, for callers that resume their events.
const KEPT_BEHIND_SNAPSHOT: u64 = 10_000;
/// The most events that one answer gives to a caller that resumes.
const MAX_MISSED: i64 = 10_000;

/// The durable part of what a batch of events came to, written in one transaction.
#[derive(Debug)]
pub struct Batch<'a> {
    /// What the state machine answered; only what is durable in it is written.
    pub actions: &'a [Action],
    /// When.
    pub at: OffsetDateTime,
    /// Which start of the coordinator it is.
    pub epoch: u64,
    /// The number of the newest record before it.
    pub newest: u64,
}

impl Batch<'_> {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        let is_durable = |action: &Action| match action {
            Action::Record(_)
            | Action::Keep(_)
            | Action::Archive(_)
            | Action::Leased(_)
            | Action::Unleased(_) => true,
            Action::Send(..)
            | Action::Located { .. }
            | Action::Grant(_)
            | Action::Collect { .. }
            | Action::Resolve { .. }
            | Action::Notify(_) => false,
        };
        !self.actions.iter().any(is_durable)
    }
}

/// The durable events after a number.
#[derive(Debug, PartialEq)]
pub enum Missed {
    /// All of them, with their numbers.
    Events(Vec<(u64, Entry)>),
    /// They are not kept any more, or too many.
    Gap,
}

impl Store {
    /// Writes a batch; its records are numbered from the one after `newest`.
    pub async fn commit(&self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let mut seq = batch.newest;
        for action in batch.actions {
            match action {
                Action::Record(record) => {
                    seq += 1;
                    let entry = Entry { at: batch.at, record: record.clone() };
                    insert_entry(&mut transaction, seq, batch.epoch, &entry).await?;
                }
                Action::Keep(workflow) => insert_workflow(&mut transaction, workflow).await?,
                Action::Archive(job) => {
                    Self::insert_ended(&mut transaction, job).await?;
                    let query = sqlx::query("DELETE FROM leases WHERE job = ?").bind(job.job.id.to_string());
                    query.execute(&mut *transaction).await.map_err(database("forget leases"))?;
                }
                Action::Leased(known) => insert_lease(&mut transaction, known).await?,
                Action::Unleased(lease) => {
                    let query = sqlx::query("DELETE FROM leases WHERE lease = ?").bind(lease.to_string());
                    query.execute(&mut *transaction).await.map_err(database("forget a lease"))?;
                }
                Action::Send(..)
                | Action::Located { .. }
                | Action::Grant(_)
                | Action::Collect { .. }
                | Action::Resolve { .. }
                | Action::Notify(_) => {}
            }
        }
        transaction.commit().await.map_err(database("commit a batch"))
    }

    /// Writes a snapshot of the state after record `seq` and drops what it replaces.
    pub async fn write_snapshot(&self, seq: u64, snapshot: &Snapshot) -> Result<(), StoreError> {
        let doing = "write a snapshot";
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT OR REPLACE INTO snapshots VALUES (?, ?)")
            .bind(column(seq))
            .bind(to_json(snapshot, "a snapshot")?)
            .execute(&mut *transaction)
            .await
            .map_err(database(doing))?;
        sqlx::query("DELETE FROM snapshots WHERE seq < ?")
            .bind(column(seq))
            .execute(&mut *transaction)
            .await
            .map_err(database(doing))?;
        sqlx::query("DELETE FROM journal WHERE seq <= ?")
            .bind(column(seq.saturating_sub(KEPT_BEHIND_SNAPSHOT)))
            .execute(&mut *transaction)
            .await
            .map_err(database(doing))?;
        transaction.commit().await.map_err(database(doing))
    }

    /// All that a start needs, and the number of the newest record.
    pub async fn load(&self) -> Result<(Found, u64), StoreError> {
        let doing = "read its journal";
        let snapshot: Option<(i64, String)> =
            sqlx::query_as("SELECT seq, state FROM snapshots ORDER BY seq DESC LIMIT 1")
                .fetch_optional(&self.pool)
                .await
                .map_err(database(doing))?;
        let (seq, snapshot) = match snapshot {
            Some((seq, state)) => (seq, from_json(&state, "a snapshot")?),
            None => (0, Snapshot::default()),
        };
        let rows = self.rows_after(seq, i64::MAX).await?;
        let newest = rows.last().map_or(seq.unsigned_abs(), |(seq, _)| *seq);
        let entries = rows.into_iter().map(|(_, entry)| entry).collect();

        let workflows: Vec<(String,)> =
            sqlx::query_as("SELECT deployed FROM workflows ORDER BY name, version")
                .fetch_all(&self.pool)
                .await
                .map_err(database(doing))?;
        let workflow = |(text,): (String,)| from_json(&text, "a workflow").map(Arc::new);
        let workflows = workflows.into_iter().map(workflow).collect::<Result<_, _>>()?;

        let leases: Vec<(String,)> = sqlx::query_as("SELECT known FROM leases")
            .fetch_all(&self.pool)
            .await
            .map_err(database(doing))?;
        let lease = |(text,): (String,)| from_json(&text, "a lease");
        let leases = leases.into_iter().map(lease).collect::<Result<_, _>>()?;
        Ok((Found { workflows, snapshot, entries, leases }, newest))
    }

    /// The durable events after a number, up to `newest`.
    pub async fn events_after(&self, after: u64, newest: u64) -> Result<Missed, StoreError> {
        if after > newest {
            return Ok(Missed::Gap);
        }
        let mut rows = self.rows_after(column(after), MAX_MISSED).await?;
        rows.retain(|(seq, _)| *seq <= newest);
        let is_whole = rows.len() as u64 == newest - after;
        Ok(if is_whole { Missed::Events(rows) } else { Missed::Gap })
    }

    async fn rows_after(&self, seq: i64, limit: i64) -> Result<Vec<(u64, Entry)>, StoreError> {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("SELECT seq, event FROM journal WHERE seq > ? ORDER BY seq LIMIT ?")
                .bind(seq)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(database("read its journal"))?;
        let entry = |(seq, text): (i64, String)| Ok((seq.unsigned_abs(), from_json(&text, "a record")?));
        rows.into_iter().map(entry).collect()
    }
}

async fn insert_entry(
    transaction: &mut Transaction<'static, Sqlite>,
    seq: u64,
    epoch: u64,
    entry: &Entry,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO journal VALUES (?, ?, ?)")
        .bind(column(seq))
        .bind(column(epoch))
        .bind(to_json(entry, "a record")?)
        .execute(&mut **transaction)
        .await
        .map_err(database("write a record"))?;
    Ok(())
}

async fn insert_workflow(
    transaction: &mut Transaction<'static, Sqlite>,
    workflow: &DeployedWorkflow,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO workflows VALUES (?, ?, ?)")
        .bind(workflow.id.name.as_str())
        .bind(i64::from(workflow.id.version))
        .bind(to_json(workflow, "a workflow")?)
        .execute(&mut **transaction)
        .await
        .map_err(database("write a workflow"))?;
    Ok(())
}

async fn insert_lease(
    transaction: &mut Transaction<'static, Sqlite>,
    known: &KnownLease,
) -> Result<(), StoreError> {
    sqlx::query("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)")
        .bind(known.lease.id.to_string())
        .bind(known.lease.job.to_string())
        .bind(to_json(known, "a lease")?)
        .execute(&mut **transaction)
        .await
        .map_err(database("note a lease"))?;
    Ok(())
}

/// SQLite's integers are signed; no count comes near their end.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
