//! The built-in engine: a few of ComfyUI's core ops on the processor, pixel for pixel as ComfyUI does
//! them. It is for trying out a farm, for tests, and for machines that have nothing else.
//!
//! It refuses every other op by name. Not here: the ops themselves (`builtin/`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::{RunError, RunErrorKind};
use tokio_util::sync::CancellationToken;

use crate::engine::{
    Description, Engine, EngineError, Execution, ProducedFile, ProgressSink, canceled, op_error,
};
use op::{Made, Surroundings};
use plan::{Argument, Step};
use value::Value;

mod class;
mod op;
mod picture;
mod pixels;
mod plan;
mod value;

/// The built-in engine.
#[derive(Debug)]
pub struct Builtin {
    options: BuiltinOptions,
}

/// How the built-in engine behaves.
#[derive(Clone, Debug)]
pub struct BuiltinOptions {
    /// Slows each op by this, for trying out what happens in the middle of a run. Defaults to none.
    pub pause_per_op: Duration,
    /// The most pixels that one batch of pictures may have; each takes 12 bytes. Defaults to 32 Mi.
    pub max_pixels: u64,
}

impl Default for BuiltinOptions {
    fn default() -> Self {
        Self { pause_per_op: Duration::ZERO, max_pixels: 32 << 20 }
    }
}

impl Builtin {
    /// An engine that behaves as `options` say.
    pub fn new(options: BuiltinOptions) -> Self {
        Self { options }
    }
}

#[async_trait]
impl Engine for Builtin {
    async fn describe(&self) -> Result<Description, EngineError> {
        let classes = class::CLASSES.iter().map(|class| class.name.to_owned()).collect();
        Ok(Description { engine: protocol::Engine::Builtin, classes, models: BTreeSet::new() })
    }

    async fn execute(
        &self,
        execution: Execution,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        let steps: Arc<[Step]> = plan::plan(&execution.workflow, &execution.outputs)?.into();
        let around = Arc::new(Surroundings {
            files: execution.files,
            scratch: execution.scratch,
            max_pixels: self.options.max_pixels,
        });
        let mut results = Results::new(&steps);
        let mut produced = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            progress.executing(number as f32 / steps.len() as f32, Some(step.class.name));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(canceled()),
                () = pause(self.options.pause_per_op) => {}
            }
            let arguments = results.take_arguments(step)?;
            let made = execute_blocking(number, &steps, arguments, &around).await?;
            produced.extend(made.files);
            results.keep(number, made.values);
        }
        progress.executing(1.0, None);
        Ok(in_order_of(&execution.outputs, produced))
    }
}

/// Waits, but not the millisecond that a timer takes at least when there is nothing to wait for.
async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

async fn execute_blocking(
    number: usize,
    steps: &Arc<[Step]>,
    arguments: Vec<Value>,
    around: &Arc<Surroundings>,
) -> Result<Made, RunError> {
    let (steps, around) = (steps.clone(), around.clone());
    let work = move || op::execute(number, &steps[number], &arguments, &around);
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|cause| {
        let detail = format!("the built-in engine broke off: {cause}");
        Err(RunError::new(RunErrorKind::EngineUnavailable, detail))
    })
}

/// The files in the order in which their outputs were asked for.
fn in_order_of(outputs: &[String], mut produced: Vec<ProducedFile>) -> Vec<ProducedFile> {
    produced.sort_by_key(|file| outputs.iter().position(|id| *id == file.op));
    produced
}

/// The values that steps made, each kept until its last reader has it: pictures are large.
struct Results {
    made: Vec<Vec<Value>>,
    readers: Vec<usize>,
}

impl Results {
    fn new(steps: &[Step]) -> Self {
        let mut readers = vec![0; steps.len()];
        for argument in steps.iter().flat_map(|step| &step.arguments) {
            if let Argument::Output { step, .. } = argument {
                readers[*step] += 1;
            }
        }
        Self { made: vec![Vec::new(); steps.len()], readers }
    }

    fn keep(&mut self, number: usize, values: Vec<Value>) {
        if self.readers[number] > 0 {
            self.made[number] = values;
        }
    }

    fn take_arguments(&mut self, step: &Step) -> Result<Vec<Value>, RunError> {
        let mut arguments = Vec::with_capacity(step.arguments.len());
        for (argument, input) in step.arguments.iter().zip(step.class.inputs) {
            let value = match argument {
                Argument::Value(value) => value.clone(),
                Argument::Output { step, slot } => self.read(*step, *slot),
            };
            let value = value::suitable(value, input.kind).map_err(|error| {
                let what = format!("input `{}` {error}", input.name);
                op_error(RunErrorKind::InvalidInput, &step.id, step.class.name, what)
            })?;
            arguments.push(value);
        }
        Ok(arguments)
    }

    fn read(&mut self, number: usize, slot: usize) -> Value {
        let value = self.made[number][slot].clone();
        self.readers[number] -= 1;
        if self.readers[number] == 0 {
            self.made[number] = Vec::new();
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use protocol::{RunId, Workflow};
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::engine::InputFile;

    fn execution(ops: Json, outputs: &[&str], scratch: &Path) -> Execution {
        Execution {
            run: "01890a5d-ac96-774b-bcce-b302099a8057".parse::<RunId>().unwrap(),
            slot: protocol::SlotId(0),
            workspace: None,
            workflow: Workflow::parse(&serde_json::to_vec(&ops).unwrap()).unwrap(),
            files: Vec::new(),
            outputs: outputs.iter().map(|&id| id.to_owned()).collect(),
            named_files: Vec::new(),
            scratch: scratch.to_owned(),
        }
    }

    fn op(class: &str, inputs: Json) -> Json {
        json!({ "class_type": class, "inputs": inputs })
    }

    fn inverted_red() -> Json {
        json!({
            "w": op("CPackInputInt", json!({"value": 2, "min": 1, "max": 8})),
            "e": op("EmptyImage", json!({"width": ["w", 0], "height": 1, "batch_size": 2, "color": 0xff0000})),
            "i": op("ImageInvert", json!({"image": ["e", 0]})),
            "s": op("SaveImage", json!({"images": ["i", 0], "filename_prefix": "run-1/../cyan"})),
            "p": op("PreviewImage", json!({"images": ["e", 0]})),
        })
    }

    fn pixels(file: &ProducedFile) -> Vec<u8> {
        image::open(&file.path).unwrap().into_rgb8().into_raw()
    }

    #[tokio::test]
    async fn workflow_gives_the_wanted_pictures_in_order() {
        let scratch = tempfile::tempdir().unwrap();
        let (sink, rx) = ProgressSink::new();
        let execution = execution(inverted_red(), &["s", "p"], scratch.path());
        let engine = Builtin::new(BuiltinOptions::default());
        let files = engine.execute(execution, &sink, &CancellationToken::new()).await.unwrap();
        let names: Vec<(&str, &str)> =
            files.iter().map(|file| (file.op.as_str(), file.file_name.as_str())).collect();
        assert_eq!(
            names,
            [
                ("s", "cyan_00001_.png"),
                ("s", "cyan_00002_.png"),
                ("p", "ComfyUI_temp_00001_.png"),
                ("p", "ComfyUI_temp_00002_.png"),
            ]
        );
        assert_eq!(pixels(&files[1]), [0, 255, 255, 0, 255, 255]);
        assert_eq!(pixels(&files[2]), [255, 0, 0, 255, 0, 0]);
        assert_eq!(rx.borrow().as_ref().unwrap().fraction, 1.0);
    }

    #[tokio::test]
    async fn loaded_picture_is_scaled_and_cropped() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("in.png");
        image::RgbaImage::from_fn(2, 1, |x, _| image::Rgba([10 * x as u8, 5, 6, 255 * x as u8]))
            .save(&path)
            .unwrap();
        let ops = json!({
            "1": op("LoadImage", json!({"image": "cat.png"})),
            "2": op("ImageScale", json!({
                "image": ["1", 0], "upscale_method": "nearest-exact", "width": 4, "height": 0, "crop": "disabled",
            })),
            "3": op("ImageCrop", json!({"image": ["2", 0], "width": 2, "height": 9, "x": 1, "y": 1})),
            "4": op("SaveImage", json!({"images": ["3", 0], "filename_prefix": "out"})),
            "5": op("MaskToImage", json!({"mask": ["1", 1]})),
            "6": op("SaveImage", json!({"images": ["5", 0], "filename_prefix": "mask"})),
        });
        let mut execution = execution(ops, &["4", "6"], scratch.path());
        execution.files = vec![InputFile { name_in_graph: "cat.png".into(), path }];
        let engine = Builtin::new(BuiltinOptions::default());
        let (sink, _) = ProgressSink::new();
        let files = engine.execute(execution, &sink, &CancellationToken::new()).await.unwrap();
        assert_eq!(pixels(&files[0]), [0, 5, 6, 10, 5, 6]);
        assert_eq!(pixels(&files[1]), [255, 255, 255, 0, 0, 0]);
    }

    #[tokio::test]
    async fn run_that_cannot_succeed_says_at_which_op_and_why() {
        let scratch = tempfile::tempdir().unwrap();
        let check = async |ops: Json, kind, message: &str| {
            let engine = Builtin::new(BuiltinOptions { max_pixels: 100, ..Default::default() });
            let (sink, _) = ProgressSink::new();
            let execution = execution(ops, &["s"], scratch.path());
            let error = engine.execute(execution, &sink, &CancellationToken::new()).await.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.detail.contains(message), "{error}");
        };
        let mut large = inverted_red();
        large["e"]["inputs"]["height"] = json!(16384);
        check(large, RunErrorKind::OutOfMemory, "2 pictures of 2x16384 are more than the 100 pixels").await;
        let mut negative = inverted_red();
        negative["w"]["inputs"]["value"] = json!(-2);
        check(negative, RunErrorKind::InvalidInput, "op `e` (EmptyImage): input `width` is -2").await;
        let mut absent = inverted_red();
        absent["e"] = op("LoadImage", json!({"image": "cat.png"}));
        check(absent, RunErrorKind::InvalidInput, "no such file came with the run").await;
    }

    #[tokio::test]
    async fn cancelled_run_ends_in_the_middle_of_a_pause() {
        let scratch = tempfile::tempdir().unwrap();
        let options = BuiltinOptions { pause_per_op: Duration::from_secs(3600), ..Default::default() };
        let (sink, mut rx) = ProgressSink::new();
        let cancel = CancellationToken::new();
        let run = tokio::spawn({
            let (execution, cancel) = (execution(inverted_red(), &["s"], scratch.path()), cancel.clone());
            async move { Builtin::new(options).execute(execution, &sink, &cancel).await }
        });
        rx.changed().await.unwrap();
        cancel.cancel();
        assert_eq!(run.await.unwrap().unwrap_err().kind, RunErrorKind::Canceled);
    }
}
