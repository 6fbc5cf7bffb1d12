//! Waiting inside a request until a job has ended. Whoever hangs up meanwhile cancels nothing.
//!
//! Not here: the event streams, which are for longer than a request should live.

use std::time::Duration;

use protocol::JobId;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::v1::jobs;
use crate::view::{FarmEvent, FarmEventKind, JobView};

/// The longest that a request waits.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// How long to wait for a job's end.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Wait up to this long for the job's end, such as `30s`, `2m` or `500ms`; at most `5m`.
    wait: Option<String>,
}

impl WaitQuery {
    /// How long to wait, if at all.
    pub(super) fn duration(&self) -> Result<Option<Duration>, ApiError> {
        let Some(text) = &self.wait else { return Ok(None) };
        match parse_duration(text) {
            None => Err(ApiError::field("wait", "type", "takes a duration such as `30s`, `2m` or `500ms`")),
            Some(longer) if longer > MAX_WAIT => Err(ApiError::field(
                "wait",
                "maximum",
                "takes at most `5m`; longer than that, follow the events",
            )),
            Some(duration) => Ok(Some(duration)),
        }
    }
}

/// Waits until the job has ended or the time is over, and says how the job is then. `live` must have
/// begun before the job was looked at or submitted, so that its end is not missed.
pub(super) async fn until_ended(
    api: &Api,
    job: JobId,
    mut live: Receiver<FarmEvent>,
    longest: Duration,
) -> Result<JobView, ApiError> {
    let view = jobs::find(api, job).await?;
    if view.state.is_final() {
        return Ok(view);
    }
    let ended = async {
        loop {
            match live.recv().await {
                Ok(FarmEvent { kind: FarmEventKind::Ended { job: ended, .. }, .. }) if ended == job => return,
                Ok(_) => {}
                // What was missed may have been the end.
                Err(RecvError::Lagged(_)) => match api.coordinator.job(job).await {
                    Ok(Some(view)) if !view.state.is_final() => {}
                    _ => return,
                },
                Err(RecvError::Closed) => return,
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = tokio::time::sleep(longest) => {}
        () = api.stopping.cancelled() => {}
    }
    jobs::find(api, job).await
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use protocol::JobState;

    use super::*;
    use crate::api::testing::TestFarm;

    #[tokio::test]
    async fn caller_that_hangs_up_while_it_waits_cancels_nothing() {
        let farm = TestFarm::start().await;
        let job = farm.submit().await;
        let path = format!("/v1/jobs/{job}?wait=60s");
        let listening = || farm.tables().listeners();
        let follows = async {
            while listening() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = farm.get(&path) => panic!("the job has not ended"),
            () = follows => {}
        }
        assert_eq!(listening(), 0);
        assert_eq!(farm.tables().jobs[&job].state, JobState::Queued);
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        };
        check("30s", Some(30_000));
        check("2m", Some(120_000));
        check("500ms", Some(500));
        check("0s", Some(0));
        for bad in ["", "s", "30", "-1s", "1.5s", "1h", "99999999999999999999s"] {
            check(bad, None);
        }
    }
}
