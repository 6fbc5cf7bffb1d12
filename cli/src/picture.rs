//! Compares pictures by their pixels.

use std::path::Path;

use image::RgbaImage;

/// Decodes a picture.
pub(crate) fn decode(bytes: &[u8]) -> Result<RgbaImage, image::ImageError> {
    Ok(image::load_from_memory(bytes)?.into_rgba8())
}

/// Whether a saved picture has exactly these pixels; the first difference in words where not.
pub(crate) fn compare(saved: &Path, expected: &RgbaImage) -> anyhow::Result<Result<(), String>> {
    let saved = decode(&std::fs::read(saved)?)?;
    if saved.dimensions() != expected.dimensions() {
        return Ok(Err(format!(
            "it is {:?} and not {:?} pixels large",
            saved.dimensions(),
            expected.dimensions()
        )));
    }
    let difference = saved.enumerate_pixels().find(|(x, y, pixel)| expected.get_pixel(*x, *y) != *pixel);
    Ok(match difference {
        None => Ok(()),
        Some((x, y, pixel)) => {
            Err(format!("pixel {x},{y} is {:?} and not {:?}", pixel.0, expected.get_pixel(x, y).0))
        }
    })
}
