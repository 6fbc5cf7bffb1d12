//! What survives a restart, in one SQLite file: the journal and its snapshots, the rows of ended jobs,
//! the workflows, and who may come in.
//!
//! Every commit is one transaction, flushed to the disk before it counts (WAL, `synchronous = FULL`).
//! Not here: what any of it means. This is the only module that names sqlx.

mod ended;
mod journal;
mod people;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

pub use self::journal::{Batch, Missed};
pub use self::people::{Admitted, StoredTicket, TicketUse};

/// The version of the tables that this release reads and writes.
const SCHEMA: i64 = 1;
/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(10);

/// The tables. `jobs` and `workflows` hold JSON beside the columns that are looked for.
const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE journal (seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, event TEXT NOT NULL) STRICT;
CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, state TEXT NOT NULL) STRICT;
CREATE TABLE workflows (
    name TEXT NOT NULL, version INTEGER NOT NULL, deployed TEXT NOT NULL, PRIMARY KEY (name, version)
) STRICT;
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, workflow TEXT NOT NULL, state TEXT NOT NULL, ended TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_of_workflow ON jobs (workflow, id);
CREATE INDEX jobs_in_state ON jobs (state, id);
CREATE TABLE leases (lease TEXT PRIMARY KEY, job TEXT NOT NULL, known TEXT NOT NULL) STRICT;
CREATE INDEX leases_of_job ON leases (job);
CREATE TABLE members (
    peer TEXT PRIMARY KEY, role TEXT NOT NULL, labels TEXT NOT NULL, ticket BLOB NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE tickets (secret BLOB PRIMARY KEY, expires INTEGER NOT NULL, uses INTEGER NOT NULL) STRICT;
CREATE TABLE keys (secret BLOB PRIMARY KEY, name TEXT NOT NULL, scope TEXT NOT NULL) STRICT;
INSERT INTO meta VALUES ('epoch', '0');
PRAGMA user_version = 1;
";

/// The coordinator's file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A later release wrote the file.
    #[error("`{}` was written by a later release (schema {found}, this one knows {SCHEMA}): update comfy-farm", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// The file cannot be opened.
    #[error("the coordinator's store `{}` cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// SQLite did not do it: the disk is full, or the file was damaged or removed.
    #[error("the coordinator's store did not {doing}")]
    Database {
        /// What it was to do.
        doing: &'static str,
        /// Why not.
        #[source]
        source: sqlx::Error,
    },
    /// A row is not what this release writes.
    #[error("a row of the coordinator's store does not read as {what}")]
    Row {
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        #[source]
        source: serde_json::Error,
    },
}

impl Store {
    /// Opens the file, making it and its tables where there are none.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let error = |source| StoreError::Open { path: path.to_owned(), source };
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.map_err(error)?;
        let (found,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(&pool).await.map_err(error)?;
        match found {
            SCHEMA => {}
            0 => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(error)?;
                sqlx::raw_sql(TABLES).execute(&mut *transaction).await.map_err(error)?;
                transaction.commit().await.map_err(error)?;
            }
            found => return Err(StoreError::Newer { path: path.to_owned(), found }),
        }
        Ok(Self { pool })
    }

    /// Raises the epoch durably and gives the new one: no two starts share it.
    pub async fn raise_epoch(&self) -> Result<u64, StoreError> {
        let doing = "raise its epoch";
        let statement = "UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'epoch' RETURNING CAST(value AS INTEGER)";
        let (epoch,): (i64,) =
            sqlx::query_as(statement).fetch_one(&self.pool).await.map_err(database(doing))?;
        Ok(epoch.unsigned_abs())
    }

    /// A lasting fact about the farm, by name.
    pub async fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row: Option<(String,)> = sqlx::query_as("SELECT value FROM meta WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(database("read a fact"))?;
        Ok(row.map(|(value,)| value))
    }

    /// Writes a lasting fact.
    pub async fn set_fact(&self, name: &str, value: &str) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO meta VALUES (?, ?)")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await
            .map_err(database("write a fact"))?;
        Ok(())
    }

    /// Finishes what is going on and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        // At once a writer: a transaction that only later becomes one could fail instead of waiting.
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(database("begin a transaction"))
    }
}

fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { doing, source }
}

fn to_json<T: serde::Serialize>(value: &T, what: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Row { what, source })
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Row { what, source })
}

#[cfg(test)]
mod tests;
