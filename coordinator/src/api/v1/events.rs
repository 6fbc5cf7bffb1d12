//! The event streams: server-sent events of the whole farm, or of one job until it ends.
//!
//! A durable event's id is its number in the journal, and `Last-Event-ID` goes on after it. Where the
//! events since then are gone, or the caller reads too slowly to keep up, the stream goes on from an
//! event `snapshot`. Progress has no id, and only the latest of a job is sent. Not here: what becomes
//! an event.

#![expect(unused_qualifications, reason = "the attribute on handlers writes qualified paths")]

mod previews;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as SseEvent, KeepAlive};
use futures::Stream;
use protocol::JobId;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use utoipa::IntoParams;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::extract::{NoQuery, Path, Query};
use crate::api::v1::jobs;
use crate::api::v1::model::event::Event;
use crate::api::v1::model::farm::Farm;
use crate::api::v1::model::job::Job;
use crate::api::v1::model::node::Node;
use crate::handle::{EventFeed, JobsFilter};
use crate::view::{FarmEvent, FarmEventKind, PreviewView};
use previews::Previews;

/// How often a silent stream shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many jobs a snapshot of the farm holds.
const SNAPSHOT_JOBS: u32 = 100;

/// Where a stream goes on.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct ResumeHeader {
    /// The id of the last event that was seen: the stream goes on after it.
    #[param(rename = "Last-Event-ID", value_type = u64, required = false)]
    #[expect(dead_code, reason = "it describes the header to callers; the handlers read it themselves")]
    last_event_id: Option<u64>,
}

/// What a stream of one job has beside its events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobStreamQuery {
    /// Whether the stream has pictures in the making too, as events `preview`, where the workflow's engine makes
    /// them.
    #[serde(default)]
    #[param(required = false)]
    previews: bool,
}

/// What happens in the farm, as it happens
///
/// Server-sent events; the data of each is an `Event`. Begins with a `snapshot`, or after `Last-Event-ID`.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "events",
    params(ResumeHeader),
    responses((status = 200, description = "A stream of events", body = Event, content_type = "text/event-stream")),
)]
pub(super) async fn stream_events(
    State(api): State<Api>,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let follower = Follower::begin(api, None, last_event_id(&headers)?).await?;
    Ok(sse(follower))
}

/// What happens to one job, as it happens, until it ends
///
/// Server-sent events; the data of each is an `Event`. Begins with a `snapshot`, or after `Last-Event-ID`,
/// and ends after the event `ended`.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    tag = "events",
    params(("id" = Uuid, Path, description = "The job"), JobStreamQuery, ResumeHeader),
    responses((status = 200, description = "A stream of events", body = Event, content_type = "text/event-stream")),
)]
pub(super) async fn stream_job_events(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<JobStreamQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let job = jobs::parse_id(&id)?;
    jobs::find(&api, job).await?;
    let previews = match query.previews {
        true => Some(Previews::begin(&api, job).await?),
        false => None,
    };
    let follower = Follower::begin(api, Some(job), last_event_id(&headers)?).await?;
    Ok(sse(Follower { previews, ..follower }))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| ApiError::Malformed("`Last-Event-ID` takes the id of an event".to_owned()))
}

fn sse(follower: Follower) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let events = futures::stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("alive"))
}

/// An event on its way out, with its number if it is durable.
#[derive(Debug)]
struct Outgoing {
    number: Option<u64>,
    /// A later one of the same replaces it.
    passing: Option<Passing>,
    is_last: bool,
    event: Event,
}

/// What only the latest of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    Progress(JobId),
    Preview,
}

/// One caller's place in the events.
struct Follower {
    api: Api,
    only: Option<JobId>,
    pending: VecDeque<Outgoing>,
    live: Receiver<FarmEvent>,
    previews: Option<Previews>,
    /// The newest number that was sent or stands in a snapshot; none up to it is sent again.
    seen: u64,
    is_over: bool,
}

impl Follower {
    async fn begin(api: Api, only: Option<JobId>, after: Option<u64>) -> Result<Self, ApiError> {
        let EventFeed { missed, newest, live } = api.coordinator.events(after).await?;
        let seen = after.unwrap_or(newest);
        let mut follower =
            Self { api, only, pending: VecDeque::new(), live, previews: None, seen, is_over: false };
        match missed.filter(|_| after.is_some()) {
            Some(missed) => {
                missed.into_iter().for_each(|event| follower.push(event));
                follower.push_end_before(seen).await?;
            }
            None => follower.push_snapshot(newest).await?,
        }
        Ok(follower)
    }

    /// The next event; `None` when the stream is over.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(outgoing) = self.pending.pop_front() {
                self.is_over = outgoing.is_last;
                return Some(outgoing.into_sse());
            }
            let received = tokio::select! {
                received = self.live.recv() => received,
                preview = previews::next(&mut self.previews) => {
                    self.push_preview(&preview);
                    continue;
                }
                () = self.api.stopping.cancelled() => return None,
            };
            match received {
                Ok(event) => self.push(event),
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(_)) => self.begin_again().await.ok()?,
            }
            // All that came meanwhile, so that progress which is already old is skipped.
            loop {
                match self.live.try_recv() {
                    Ok(event) => self.push(event),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                    Err(TryRecvError::Lagged(_)) => self.begin_again().await.ok()?,
                }
            }
        }
    }

    async fn begin_again(&mut self) -> Result<(), ApiError> {
        let feed = self.api.coordinator.events(None).await?;
        self.live = feed.live;
        self.pending.clear();
        self.push_snapshot(feed.newest).await
    }

    fn push(&mut self, event: FarmEvent) {
        if self.only.is_some() && event.kind.job() != self.only {
            return;
        }
        if let Some(number) = event.number {
            if number <= self.seen {
                return;
            }
            self.seen = number;
        }
        let passing = match &event.kind {
            FarmEventKind::Progress { job, .. } => Some(Passing::Progress(*job)),
            _ => None,
        };
        if let (FarmEventKind::Started { .. }, Some(previews)) = (&event.kind, &mut self.previews) {
            previews.ask_at_once();
        }
        let is_last = self.only.is_some() && matches!(event.kind, FarmEventKind::Ended { .. });
        self.put(Outgoing { number: event.number, passing, is_last, event: event.into() });
    }

    fn push_preview(&mut self, preview: &PreviewView) {
        let passing = Some(Passing::Preview);
        self.put(Outgoing { number: None, passing, is_last: false, event: preview.into() });
    }

    fn put(&mut self, outgoing: Outgoing) {
        if outgoing.passing.is_some() {
            self.pending.retain(|earlier| earlier.passing != outgoing.passing);
        }
        self.pending.push_back(outgoing);
    }

    async fn push_snapshot(&mut self, number: u64) -> Result<(), ApiError> {
        self.seen = number;
        let coordinator = &self.api.coordinator;
        let farm = Farm::from(coordinator.farm().await?);
        let (nodes, views) = match self.only {
            Some(job) => (Vec::new(), vec![jobs::find(&self.api, job).await?]),
            None => {
                let filter = JobsFilter { limit: SNAPSHOT_JOBS, ..JobsFilter::default() };
                (coordinator.nodes().await?, coordinator.jobs(filter).await?)
            }
        };
        let nodes = nodes.into_iter().map(Node::from).collect();
        let jobs = views.into_iter().map(|view| Job::new(view, self.api.peer)).collect();
        let event = Event::snapshot(farm, nodes, jobs);
        self.pending.push_back(Outgoing { number: Some(number), passing: None, is_last: false, event });
        self.push_end_before(number).await
    }

    /// Closes the stream of a job that had ended before it began: nothing more will come of it.
    async fn push_end_before(&mut self, number: u64) -> Result<(), ApiError> {
        let Some(job) = self.only.filter(|_| !self.pending.iter().any(|event| event.is_last)) else {
            return Ok(());
        };
        let view = jobs::find(&self.api, job).await?;
        if let (true, Some(at)) = (view.state.is_final(), view.ended) {
            let event = Event::ended(job.0, view.state.into(), at);
            self.pending.push_back(Outgoing { number: Some(number), passing: None, is_last: true, event });
        }
        Ok(())
    }
}

impl Outgoing {
    fn into_sse(self) -> SseEvent {
        let data = serde_json::to_string(&self.event).expect("an event has only text keys");
        let event = SseEvent::default().event(self.event.name()).data(data);
        match self.number {
            Some(number) => event.id(number.to_string()),
            None => event,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Method;
    use futures::StreamExt;
    use protocol::{Phase, Progress, RunId, SlotId};

    use super::*;
    use crate::api::testing::{COORDINATOR, TestFarm, bytes_of, request};
    use crate::view::RunView;

    /// The ids and names of the events in a stream.
    fn parse(stream: &[u8]) -> Vec<(Option<u64>, String)> {
        let text = std::str::from_utf8(stream).unwrap();
        let field = |event: &str, name: &str| {
            event.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        let event = |event| {
            let id = field(event, "id:").map(|id| id.parse().unwrap());
            Some((id, field(event, "event:")?))
        };
        text.split("\n\n").filter_map(event).collect()
    }

    async fn stream_of(farm: &TestFarm, path: &str, after: Option<u64>) -> Vec<(Option<u64>, String)> {
        let mut request = request(Method::GET, path);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        parse(&bytes_of(farm.send(request.body(Body::empty()).unwrap()).await).await)
    }

    fn named(events: &[(Option<u64>, &str)]) -> Vec<(Option<u64>, String)> {
        events.iter().map(|(id, name)| (*id, (*name).to_owned())).collect()
    }

    fn run(fraction: f32) -> RunView {
        let progress = Progress { phase: Phase::Executing, fraction, detail: None };
        let id = RunId(uuid::Uuid::nil());
        RunView { id, node: COORDINATOR, slot: SlotId(0), phase: Phase::Executing, progress: Some(progress) }
    }

    #[tokio::test]
    async fn stream_of_a_job_resumes_after_a_number_and_ends_with_the_job() {
        let farm = TestFarm::start().await;
        let (job, _other) = (farm.submit().await, farm.submit().await);
        farm.tables().succeed(job, Vec::new());
        let path = format!("/v1/jobs/{job}/events");
        assert_eq!(
            stream_of(&farm, &path, Some(0)).await,
            named(&[(Some(1), "submitted"), (Some(3), "ended")])
        );
        assert_eq!(stream_of(&farm, &path, Some(1)).await, named(&[(Some(3), "ended")]));
        let from_now = named(&[(Some(3), "snapshot"), (Some(3), "ended")]);
        assert_eq!(stream_of(&farm, &path, None).await, from_now);
        assert_eq!(stream_of(&farm, &path, Some(3)).await, named(&[(Some(3), "ended")]));
        farm.tables().forgotten = 2;
        assert_eq!(stream_of(&farm, &path, Some(1)).await, from_now, "a gap begins from a snapshot");
        assert_eq!(farm.get("/v1/jobs/00000000-0000-7000-8000-000000000000/events").await.0, 404);
    }

    #[tokio::test]
    async fn only_the_latest_progress_is_told_and_it_has_no_number() {
        let farm = TestFarm::start().await;
        let job = farm.submit().await;
        let path = format!("/v1/jobs/{job}/events");
        let response = farm.send(request(Method::GET, &path).body(Body::empty()).unwrap()).await;
        for fraction in [0.1, 0.2, 0.3] {
            farm.tables().happen(false, FarmEventKind::Progress { job, run: run(fraction) });
        }
        farm.tables().succeed(job, Vec::new());
        let stream = bytes_of(response).await;
        let expected = named(&[(Some(1), "snapshot"), (None, "progress"), (Some(2), "ended")]);
        assert_eq!(parse(&stream), expected);
        assert!(std::str::from_utf8(&stream).unwrap().contains("\"fraction\":0.3"));
    }

    #[tokio::test]
    async fn previews_come_to_who_asks_for_them_and_only_the_latest() {
        let farm = TestFarm::start().await;
        let (job, other) = (farm.submit().await, farm.submit().await);
        let path = |query: &str| format!("/v1/jobs/{job}/events{query}");
        let open =
            async |path: String| farm.send(request(Method::GET, &path).body(Body::empty()).unwrap()).await;
        let (watching, following) = (open(path("?previews=true")).await, open(path("")).await);
        assert_eq!(farm.tables().watched, [job]);
        let mut watching = watching.into_body().into_data_stream();
        let first = watching.next().await.unwrap().unwrap();
        assert_eq!(parse(&first), named(&[(Some(2), "snapshot")]));
        farm.tables().show(other, b"\xff\xd8\xff of another job");
        farm.tables().show(job, b"\xff\xd8\xff");
        let preview = watching.next().await.unwrap().unwrap();
        assert_eq!(parse(&preview), named(&[(None, "preview")]));
        let text = std::str::from_utf8(&preview).unwrap();
        assert!(text.contains(r#""media_type":"image/jpeg","data":"/9j/""#), "{text}");
        farm.tables().succeed(job, Vec::new());
        let last = watching.next().await.unwrap().unwrap();
        assert_eq!(parse(&last), named(&[(Some(3), "ended")]));
        let followed = parse(&bytes_of(following).await);
        assert_eq!(followed, named(&[(Some(2), "snapshot"), (Some(3), "ended")]), "who did not ask has none");
        assert_eq!(open(path("?preview=true")).await.status(), 422);
    }

    #[tokio::test]
    async fn reader_that_lags_goes_on_from_a_snapshot() {
        let farm = TestFarm::start().await;
        let response = farm.send(request(Method::GET, "/v1/events").body(Body::empty()).unwrap()).await;
        let mut body = response.into_body().into_data_stream();
        let first = body.next().await.unwrap().unwrap();
        assert_eq!(parse(&first), named(&[(Some(0), "snapshot")]));
        // More than the channel holds, before the reader takes any of it.
        for _ in 0..20 {
            let happened = FarmEventKind::NodeChanged(COORDINATOR);
            farm.tables().happen(false, happened);
        }
        let next = body.next().await.unwrap().unwrap();
        assert_eq!(parse(&next), named(&[(Some(0), "snapshot")]));
        let job = farm.submit().await;
        let next = body.next().await.unwrap().unwrap();
        assert_eq!(parse(&next), named(&[(Some(1), "submitted")]));
        assert!(std::str::from_utf8(&next).unwrap().contains(&job.to_string()));
    }
}
