//! What each command of the handle comes to. Answers are made from the state in the loop and given
//! once the batch is durable; ended jobs are read from the store in tasks.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::ticket::Ticket;
use protocol::{BlobName, JobId, JobState, PeerId, WorkflowSelector, WorkflowVersion};
use tokio::sync::oneshot;

use super::driver::Driver;
use super::work::{self, Answer};
use crate::handle::{Command, CommandError, EventFeed, Invitation, JobsFilter, KeepWish};
use crate::net::unix_time;
use crate::state::Event;
use crate::state::record::{EndedJob, Entry, NewJob};
use crate::store::{Missed, Store, StoreError};
use crate::view::{BlobView, DeployedWorkflow, FarmEvent, JobView, NodeView};

impl Driver {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Deploy(deployment, answer) => {
                let (blobs, now) = (self.parts.blobs.clone(), self.now().wall);
                let publisher = Arc::clone(self.parts.admission.publisher());
                self.spawn_report(work::deploy(*deployment, blobs, publisher, now, answer));
            }
            Command::Restore(id, answer) => self.restore(id, answer),
            Command::Workflows(answer) => self.answer(answer, self.state.workflows()),
            Command::Workflow(selector, answer) => {
                self.answer(answer, self.state.workflow(&selector).cloned());
            }
            Command::Submit(submission, answer) => {
                let (blobs, now) = (self.parts.blobs.clone(), self.now().wall);
                self.spawn_report(work::submit(*submission, blobs, now, answer));
            }
            Command::Job(job, answer) => self.job(job, answer),
            Command::Jobs(filter, answer) => self.jobs(filter, answer),
            Command::Cancel(job, answer) => {
                self.apply(Event::Cancel(job));
                self.job(job, answer);
            }
            Command::Nodes(answer) => self.answer(answer, self.state.node_views()),
            Command::Blob(name, answer) => self.blob(&name, answer),
            Command::Keep(wish, answer) => self.keep(wish, answer),
            Command::SetDraining(node, draining, answer) => self.set_draining(node, draining, answer),
            Command::Invite(invitation, answer) => self.invite(invitation, answer),
            Command::Farm(answer) => self.answer(answer, self.state.farm_view(self.parts.admission.farm())),
            Command::Authenticate(key, answer) => {
                self.answer(answer, self.parts.admission.authenticate(&key));
            }
            Command::Events(after, answer) => self.events(after, answer),
            Command::Previews(job, answer) => self.previews(job, answer),
        }
    }

    /// Applies a deploy whose blobs are stored; now it gets its number.
    pub(super) fn deploy(&mut self, mut workflow: DeployedWorkflow, answer: Answer<Arc<DeployedWorkflow>>) {
        workflow.id.version = self.state.next_version(&workflow.id.name);
        let workflow = Arc::new(workflow);
        self.apply(Event::Deploy(workflow.clone()));
        self.answer(answer, Ok(workflow));
    }

    /// Applies a submission whose parameters are stored.
    pub(super) fn submit(&mut self, job: Box<NewJob>, answer: Answer<JobId>) {
        let waiting = self.state.waiting();
        if self.state.version(&job.workflow).is_none() {
            return self.answer(answer, Err(CommandError::UnknownWorkflow(job.workflow.to_string())));
        }
        if waiting >= self.max_queued {
            return self.answer(answer, Err(CommandError::QueueFull(waiting)));
        }
        let id = job.id;
        self.apply(Event::Submit(job));
        self.answer(answer, Ok(id));
    }

    fn restore(&mut self, id: WorkflowVersion, answer: Answer<Arc<DeployedWorkflow>>) {
        let Some(workflow) = self.state.version(&id).cloned() else {
            return self.answer(answer, Err(CommandError::UnknownWorkflow(id.to_string())));
        };
        let current = WorkflowSelector { name: id.name.clone(), version: None };
        if self.state.workflow(&current).is_none_or(|current| current.id != id) {
            self.apply(Event::Restore(id));
        }
        self.answer(answer, Ok(workflow));
    }

    /// A live job from the state, an ended one from the store.
    fn job(&mut self, id: JobId, answer: Answer<Option<JobView>>) {
        if let Some(view) = self.state.job_view(id, self.now()) {
            return self.answer(answer, Ok(Some(view)));
        }
        let store = self.parts.store.clone();
        self.read(answer, async move { Ok(store.ended_job(id).await?.map(EndedJob::into_view)) });
    }

    fn jobs(&mut self, filter: JobsFilter, answer: Answer<Vec<JobView>>) {
        let live = self.state.live_jobs(&filter, self.now());
        let store = self.parts.store.clone();
        self.read(answer, merge(live, filter, store));
    }

    fn blob(&mut self, name: &BlobName, answer: oneshot::Sender<BlobView>) {
        let mut view = self.state.blob_view(name);
        let own = self.own_blob(name, view.blob);
        view.in_coordinator = own.is_some();
        view.blob = view.blob.or(own);
        self.answer(answer, view);
    }

    fn keep(&mut self, wish: KeepWish, answer: oneshot::Sender<BlobView>) {
        let KeepWish { blob, copies, author } = wish;
        self.apply(Event::Keep { blob, copies, author });
        self.blob(&BlobName::Blake3(blob.hash), answer);
    }

    fn set_draining(&mut self, node: PeerId, draining: bool, answer: Answer<Option<NodeView>>) {
        if self.state.node_view(node).is_some() {
            self.apply(Event::SetDraining(node, draining));
        }
        self.answer(answer, Ok(self.state.node_view(node)));
    }

    fn invite(&mut self, invitation: Invitation, answer: Answer<Ticket>) {
        let (admission, addresses) = (self.parts.admission.clone(), self.parts.addresses.clone());
        self.spawn(async move {
            let ticket = admission.invite(&invitation, addresses, unix_time()).await;
            // Whoever asked may be gone.
            let _ = answer.send(ticket.map_err(|error| CommandError::Store(error.to_string())));
        });
    }

    /// Subscribes at a moment at which all that is numbered so far is durable, so that what was missed
    /// and what is live join without a gap.
    fn events(&mut self, after: Option<u64>, answer: Answer<EventFeed>) {
        self.after_commit(move |driver| {
            let (newest, live) = (driver.newest, driver.live.subscribe());
            let store = driver.parts.store.clone();
            driver.read_now(answer, async move {
                let missed = match after {
                    Some(after) => missed(store.events_after(after, newest).await?),
                    None => Some(Vec::new()),
                };
                Ok(EventFeed { missed, newest, live })
            });
        });
    }

    fn answer<T: Send + 'static>(&mut self, answer: oneshot::Sender<T>, value: T) {
        self.after_commit(move |_| {
            // Whoever asked may be gone.
            let _ = answer.send(value);
        });
    }

    /// Reads from the store once the batch is in it.
    fn read<T: Send + 'static>(
        &mut self,
        answer: Answer<T>,
        reading: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) {
        self.after_commit(move |driver| driver.read_now(answer, reading));
    }

    fn read_now<T: Send + 'static>(
        &mut self,
        answer: Answer<T>,
        reading: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) {
        self.spawn(async move {
            let value = reading.await.map_err(|error| CommandError::Store(error.to_string()));
            // Whoever asked may be gone.
            let _ = answer.send(value);
        });
    }
}

/// Live and ended jobs in one list, newest first. A job that ended in between is live no longer.
async fn merge(live: Vec<JobView>, filter: JobsFilter, store: Store) -> Result<Vec<JobView>, StoreError> {
    let wants_ended = filter.state.is_none_or(JobState::is_final);
    let ended = if wants_ended { store.ended_jobs(&filter).await? } else { Vec::new() };
    let mut jobs: Vec<JobView> = ended.into_iter().map(EndedJob::into_view).collect();
    let known: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
    jobs.extend(live.into_iter().filter(|job| !known.contains(&job.id)));
    jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
    jobs.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
    Ok(jobs)
}

fn missed(missed: Missed) -> Option<Vec<FarmEvent>> {
    let Missed::Events(entries) = missed else { return None };
    let event = |(number, entry): (u64, Entry)| FarmEvent {
        number: Some(number),
        at: entry.at,
        kind: entry.record.to_event(),
    };
    Some(entries.into_iter().map(event).collect())
}
