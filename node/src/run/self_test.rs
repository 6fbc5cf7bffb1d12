//! A run for nobody, that shows whether a workflow works here.
//!
//! Done as any run is, but that nothing of it is kept, and that it has a time limit. Not here: when it is done.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use protocol::message::Grant;
use protocol::{
    BlobRef, Interface, JobId, Lease, LeaseId, RunError, RunErrorKind, RunId, SelfTest, SelfTested, SlotId,
    SmallFile, Workflow,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, instrument, warn};

use super::{Needs, Record, Telling, Tools, invalid, remove_scratch, run_impl, store};
use crate::engine::ProgressSink;

/// How long one may take.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// The side of a picture that stands in for one, in pixels.
const SIDE: u32 = 64;

/// Does a self-test on a slot. `None` where it came to nothing: it was cancelled, or no small file stands in for what
/// the workflow takes.
#[instrument(name = "self_test", skip_all, fields(workflow = %test.workflow))]
pub(crate) async fn self_test_task(
    test: SelfTest,
    slot: SlotId,
    tools: Arc<Tools>,
    cancel: CancellationToken,
) -> Option<SelfTested> {
    info!("self-test begins");
    let limit = cancel.child_token();
    let testing = self_test_impl(&test, slot, &tools, &limit);
    tokio::pin!(testing);
    let result = match timeout(LIMIT, &mut testing).await {
        Ok(result) => result?,
        Err(_) => {
            limit.cancel();
            let detail = format!("it did not end within {} minutes", LIMIT.as_secs() / 60);
            // It ends in good order, and may have succeeded meanwhile.
            testing.await?.map_err(|_| RunError::new(RunErrorKind::Stalled, detail))
        }
    };
    match &result {
        _ if cancel.is_cancelled() => return None,
        Ok(()) => info!("self-test succeeded"),
        Err(error) => warn!(kind = error.kind.as_str(), detail = error.detail, "self-test failed"),
    }
    Some(SelfTested { workflow: test.workflow.clone(), failure: result.err() })
}

async fn self_test_impl(
    test: &SelfTest,
    slot: SlotId,
    tools: &Tools,
    cancel: &CancellationToken,
) -> Option<Result<(), RunError>> {
    let mut grant = to_grant(test, slot);
    // Nobody is told how far it is.
    let telling = Telling { phases: mpsc::channel(1).0, progress: ProgressSink::new().0 };
    let mut record = Record::default();
    match parameters(&grant, tools, &telling, cancel, &mut record).await {
        Ok(Some(parameters)) => grant.parameters = parameters,
        Ok(None) => {
            info!("no self-test: nothing small stands in for a file that it takes");
            return None;
        }
        Err(error) => return Some(Err(error)),
    }
    let folder = tools.scratch_of(grant.lease.run);
    let ran = run_impl(&grant, tools, &telling, cancel, &folder, &mut record).await;
    remove_scratch(&folder).await;
    Some(ran.map(drop))
}

/// The grant of a run that has no job.
fn to_grant(test: &SelfTest, slot: SlotId) -> Grant {
    let SelfTest { workflow, lockfile, graph, interface, inputs, providers } = test.clone();
    let id = LeaseId { epoch: 0, counter: 0 };
    let lease = Lease { id, job: JobId(uuid::Uuid::now_v7()), run: RunId(uuid::Uuid::now_v7()) };
    let parameters = Vec::new();
    Grant { lease, slot, workflow, lockfile, graph, interface, inputs, parameters, providers }
}

/// What is given, as canonical JSON.
async fn parameters(
    grant: &Grant,
    tools: &Tools,
    telling: &Telling,
    cancel: &CancellationToken,
    record: &mut Record,
) -> Result<Option<Vec<u8>>, RunError> {
    let needs = Needs { grant, tools, cancel, progress: &telling.progress };
    let graph = needs.document(grant.graph, record).await?;
    let interface = needs.document(grant.interface, record).await?;
    let graph = Workflow::parse(&graph).map_err(invalid)?;
    let interface: Interface = serde_json::from_slice(&interface).map_err(invalid)?;
    let mut made = Vec::new();
    let small = |file: SmallFile| {
        let bytes = bytes_of(file);
        let blob = BlobRef::of(&bytes);
        made.push(bytes);
        blob
    };
    let Some(given) = interface.test_parameters(&graph, &grant.inputs, small) else { return Ok(None) };
    for bytes in made {
        tools.blobs.import_bytes(&bytes).await.map_err(store)?;
    }
    let checked = interface.check(given).map_err(|faults| {
        let detail = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        RunError::new(RunErrorKind::InvalidInput, detail)
    })?;
    Ok(Some(checked.to_canonical_json()))
}

/// A small file of each kind.
fn bytes_of(file: SmallFile) -> Vec<u8> {
    match file {
        SmallFile::Picture => {
            let shade = |at: u32| u8::try_from(at * 255 / SIDE).unwrap_or(u8::MAX);
            let picture =
                image::RgbImage::from_fn(SIDE, SIDE, |x, y| image::Rgb([shade(x), shade(y), shade(x ^ y)]));
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, image::ImageFormat::Png).expect("memory takes what is written");
            bytes.into_inner()
        }
        SmallFile::Sound => silence(),
        SmallFile::Text => b"{}\n".to_vec(),
    }
}

/// One second of silence: 8,000 samples of 16 bits, as WAV.
fn silence() -> Vec<u8> {
    const RATE: u32 = 8_000;
    let length = RATE * 2;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + length).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    bytes.extend(RATE.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(b"\x02\0\x10\0data");
    bytes.extend(length.to_le_bytes());
    bytes.resize(bytes.len() + length as usize, 0);
    bytes
}
