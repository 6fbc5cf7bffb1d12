//! The journal: batches of records in one transaction each, snapshots that replace old ones, and all
//! that a start reads.

use std::sync::Arc;

use protocol::LeaseId;
use sqlx::{Sqlite, Transaction};
use time::OffsetDateTime;

use super::{Store, StoreError, database, from_json, to_json};
use crate::state::Action;
use crate::state::record::{EndedJob, Entry, Found, KnownLease, Snapshot};
use crate::view::DeployedWorkflow;

/// How many records are kept behind a snapshot, for callers that resume their events.
const KEPT_BEHIND_SNAPSHOT: u64 = 10_000;
/// The most events that one answer gives to a caller that resumes.
const MAX_MISSED: i64 = 10_000;

/// What one transaction writes.
#[derive(Debug, Default)]
pub struct Batch {
    entries: Vec<Entry>,
    kept: Vec<Arc<DeployedWorkflow>>,
    archived: Vec<EndedJob>,
    leases: Vec<LeaseChange>,
}

#[derive(Debug)]
enum LeaseChange {
    Leased(KnownLease),
    Unleased(LeaseId),
}

impl Batch {
    /// Takes the durable part of an action, or gives the action back if it has none.
    pub fn take(&mut self, action: Action, at: OffsetDateTime) -> Option<Action> {
        match action {
            Action::Record(record) => self.entries.push(Entry { at, record }),
            Action::Keep(workflow) => self.kept.push(workflow),
            Action::Archive(job) => self.archived.push(*job),
            Action::Leased(known) => self.leases.push(LeaseChange::Leased(known)),
            Action::Unleased(lease) => self.leases.push(LeaseChange::Unleased(lease)),
            other => return Some(other),
        }
        None
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.kept.is_empty() && self.archived.is_empty() && self.leases.is_empty()
    }

    /// The records in their order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
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
    /// Writes a batch in one transaction; its records are numbered from `newest + 1`.
    pub async fn commit(&self, epoch: u64, newest: u64, batch: &Batch) -> Result<(), StoreError> {
        let doing = "commit a batch";
        let mut transaction = self.begin().await?;
        for workflow in &batch.kept {
            insert_workflow(&mut transaction, workflow).await?;
        }
        for (seq, entry) in (newest + 1..).zip(&batch.entries) {
            sqlx::query("INSERT INTO journal VALUES (?, ?, ?)")
                .bind(column(seq))
                .bind(column(epoch))
                .bind(to_json(entry, "a record")?)
                .execute(&mut *transaction)
                .await
                .map_err(database(doing))?;
        }
        for change in &batch.leases {
            write_lease(&mut transaction, change).await?;
        }
        for job in &batch.archived {
            Self::insert_ended(&mut transaction, job).await?;
            sqlx::query("DELETE FROM leases WHERE job = ?")
                .bind(job.job.id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(database(doing))?;
        }
        transaction.commit().await.map_err(database(doing))
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

async fn write_lease(
    transaction: &mut Transaction<'static, Sqlite>,
    change: &LeaseChange,
) -> Result<(), StoreError> {
    let query = match change {
        LeaseChange::Leased(known) => sqlx::query("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)")
            .bind(known.lease.id.to_string())
            .bind(known.lease.job.to_string())
            .bind(to_json(known, "a lease")?),
        LeaseChange::Unleased(lease) => {
            sqlx::query("DELETE FROM leases WHERE lease = ?").bind(lease.to_string())
        }
    };
    query.execute(&mut **transaction).await.map_err(database("note a lease"))?;
    Ok(())
}

/// SQLite's integers are signed; no count comes near their end.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
