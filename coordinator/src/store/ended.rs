//! The rows of ended jobs.

use protocol::JobId;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::{Store, StoreError, database, from_json, to_json};
use crate::handle::JobsFilter;
use crate::state::record::EndedJob;

impl Store {
    /// One ended job.
    pub async fn ended_job(&self, id: JobId) -> Result<Option<EndedJob>, StoreError> {
        let row: Option<(String,)> = sqlx::query_as("SELECT ended FROM jobs WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(database("read a job"))?;
        row.map(|(text,)| from_json(&text, "an ended job")).transpose()
    }

    /// The ended jobs that match, newest first: ids sort by the time of submission.
    pub async fn ended_jobs(&self, filter: &JobsFilter) -> Result<Vec<EndedJob>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ended FROM jobs WHERE 1 = 1");
        if let Some(state) = filter.state {
            query.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(workflow) = &filter.workflow {
            query.push(" AND workflow = ").push_bind(workflow.as_str().to_owned());
        }
        if let Some(before) = filter.before {
            query.push(" AND id < ").push_bind(before.to_string());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(filter.limit));
        let rows: Vec<(String,)> =
            query.build_query_as().fetch_all(&self.pool).await.map_err(database("list jobs"))?;
        rows.into_iter().map(|(text,)| from_json(&text, "an ended job")).collect()
    }

    /// Writes the row of a job; it is an error to end one twice.
    pub(super) async fn insert_ended(
        transaction: &mut Transaction<'static, Sqlite>,
        ended: &EndedJob,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO jobs VALUES (?, ?, ?, ?)")
            .bind(ended.job.id.to_string())
            .bind(ended.job.workflow.name.as_str())
            .bind(ended.state.as_str())
            .bind(to_json(ended, "an ended job")?)
            .execute(&mut **transaction)
            .await
            .map_err(database("write an ended job"))?;
        Ok(())
    }
}
