//! Executing one op of a plan.
//!
//! Not here: which ops, and in which order (`plan.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::{RunError, RunErrorKind};

use super::class::Action;
use super::picture::{self, ReadError};
use super::pixels::{Crop, Pixels, proportional};
use super::plan::Step;
use super::value::Value;
use crate::engine::{InputFile, ProducedFile, op_error, safe_file_name};

/// What the ops of one run share.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// The files that LoadImage may name.
    pub(super) files: Vec<InputFile>,
    /// Where SaveImage writes.
    pub(super) scratch: PathBuf,
    /// The most pixels of one batch.
    pub(super) max_pixels: u64,
}

/// What an op made.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// The values of its output slots.
    pub(super) values: Vec<Value>,
    /// The files that it wrote.
    pub(super) files: Vec<ProducedFile>,
}

/// Executes the step of that number. `arguments` were checked against the inputs of its class.
pub(super) fn execute(
    number: usize,
    step: &Step,
    arguments: &[Value],
    around: &Surroundings,
) -> Result<Made, RunError> {
    let values = match (step.class.action, arguments) {
        (Action::LoadImage, [Value::Text(name)]) => load(step, name, around)?,
        (
            Action::EmptyImage,
            [Value::Int(width), Value::Int(height), Value::Int(batch), Value::Int(color)],
        ) => {
            let (batch, height, width) = (whole(*batch), whole(*height), whole(*width));
            refuse_too_large(step, [batch, height, width], around)?;
            let color = u32::try_from(*color).expect("the range of the input fits");
            vec![image(Pixels::filled(batch, height, width, color))]
        }
        (Action::Invert, [Value::Image(pixels)]) => vec![image(pixels.inverted())],
        (
            Action::Crop,
            [Value::Image(pixels), Value::Int(width), Value::Int(height), Value::Int(x), Value::Int(y)],
        ) => vec![image(pixels.cropped(whole(*width), whole(*height), whole(*x), whole(*y)))],
        (
            Action::Scale,
            [Value::Image(pixels), _, Value::Int(width), Value::Int(height), Value::Text(crop)],
        ) => {
            let crop = if crop == "center" { Crop::Center } else { Crop::Disabled };
            vec![image(scale(step, pixels, whole(*width), whole(*height), crop, around)?)]
        }
        (Action::MaskToImage, [Value::Mask(mask)]) => vec![image(mask.to_pixels())],
        (Action::Pass, [value]) => vec![value.clone()],
        (Action::Save, [Value::Image(pixels), Value::Text(prefix)]) => {
            let files = save(number, step, pixels, prefix, &around.scratch)?;
            return Ok(Made { values: Vec::new(), files });
        }
        (action, _) => unreachable!("{action:?} was given other inputs than its class has"),
    };
    Ok(Made { values, files: Vec::new() })
}

fn load(step: &Step, name: &str, around: &Surroundings) -> Result<Vec<Value>, RunError> {
    let Some(file) = around.files.iter().find(|file| file.name_in_graph == name) else {
        let what = format!("input `image` names `{name}`, and no such file came with the run");
        return Err(error(step, RunErrorKind::InvalidInput, what));
    };
    let (pixels, mask) = picture::read(&file.path, around.max_pixels).map_err(|cause| {
        let kind = match cause {
            ReadError::Io(_) => RunErrorKind::NodeFault,
            ReadError::Format | ReadError::Decode(_) => RunErrorKind::InvalidInput,
            ReadError::TooLarge { .. } => RunErrorKind::OutOfMemory,
            ReadError::Unsupported(_) => RunErrorKind::MissingOp,
        };
        error(step, kind, format!("`{name}`: {cause}"))
    })?;
    Ok(vec![image(pixels), Value::Mask(Arc::new(mask))])
}

fn scale(
    step: &Step,
    pixels: &Pixels,
    width: usize,
    height: usize,
    crop: Crop,
    around: &Surroundings,
) -> Result<Pixels, RunError> {
    let sides = match (width, height) {
        (0, 0) => [pixels.height, pixels.width],
        (0, height) => [height, proportional(pixels.width, height, pixels.height)],
        (width, 0) => [proportional(pixels.height, width, pixels.width), width],
        (width, height) => [height, width],
    };
    refuse_too_large(step, [pixels.batch, sides[0], sides[1]], around)?;
    pixels.scaled(width, height, crop).ok_or_else(|| {
        let what = format!(
            "nothing is left of a picture of {}x{} when its middle is cut to the proportions of {width}x{height}",
            pixels.width, pixels.height
        );
        error(step, RunErrorKind::InvalidInput, what)
    })
}

fn save(
    number: usize,
    step: &Step,
    pixels: &Pixels,
    prefix: &str,
    scratch: &Path,
) -> Result<Vec<ProducedFile>, RunError> {
    let name = match safe_file_name(prefix) {
        name if name.is_empty() => "ComfyUI".to_owned(),
        name => name,
    };
    let mut files = Vec::with_capacity(pixels.batch);
    for (place, rgb) in pixels.to_rgb8().enumerate() {
        let path = scratch.join(format!("{number}-{place}.png"));
        picture::write_png(&path, pixels.width, pixels.height, &rgb).map_err(|cause| {
            error(step, RunErrorKind::NodeFault, format!("a picture cannot be written: {cause}"))
        })?;
        files.push(ProducedFile {
            op: step.id.clone(),
            file_name: format!("{name}_{:05}_.png", place + 1),
            media_type: "image/png".to_owned(),
            path,
        });
    }
    Ok(files)
}

/// Refuses a batch of pictures before memory is taken for it.
fn refuse_too_large(step: &Step, sides: [usize; 3], around: &Surroundings) -> Result<(), RunError> {
    let pixels = sides.iter().map(|&side| side as u64).product::<u64>();
    if pixels <= around.max_pixels {
        return Ok(());
    }
    let [batch, height, width] = sides;
    let what = format!(
        "{batch} pictures of {width}x{height} are more than the {} pixels that the built-in engine takes",
        around.max_pixels
    );
    Err(error(step, RunErrorKind::OutOfMemory, what))
}

fn image(pixels: Pixels) -> Value {
    Value::Image(Arc::new(pixels))
}

fn whole(value: i64) -> usize {
    usize::try_from(value).expect("the ranges of such inputs begin at 0")
}

fn error(step: &Step, kind: RunErrorKind, what: impl std::fmt::Display) -> RunError {
    op_error(kind, &step.id, step.class.name, what)
}
