//! Pictures on disk: read as ComfyUI's LoadImage reads them, written as SaveImage writes them.
//!
//! PNG and lossless WebP give the same pixels as there. JPEG and lossy WebP are read by another decoder
//! than ComfyUI's, and a value can differ by a few of its 255 steps. What would be read otherwise for sure
//! (animations, 16-bit grey) is refused by name. Not here: arithmetic (`pixels.rs`).

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::{PngDecoder, PngEncoder};
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, ImageFormat, Limits};

use super::pixels::{Mask, Pixels};

/// Why a picture cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The file cannot be read at all.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is of another format, or no picture.
    #[error("the file is no PNG, JPEG or WebP picture")]
    Format,
    /// It is damaged.
    #[error("the picture cannot be decoded: {0}")]
    Decode(#[from] ImageError),
    /// It has more pixels than the engine takes.
    #[error("the picture is {width}x{height}, and the built-in engine takes at most {limit} pixels")]
    TooLarge { width: u32, height: u32, limit: u64 },
    /// ComfyUI would read it in a way that this engine cannot.
    #[error("the built-in engine does not take {0}")]
    Unsupported(&'static str),
}

/// Reads a picture and its mask. The size is checked before memory is taken for it.
pub(super) fn read(path: &Path, max_pixels: u64) -> Result<(Pixels, Mask), ReadError> {
    let mut file = BufReader::new(File::open(path)?);
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    match image::guess_format(&head) {
        Ok(ImageFormat::Png) => {
            let decoder = PngDecoder::with_limits(file, limits(max_pixels))?;
            if decoder.is_apng()? {
                return Err(ReadError::Unsupported("animated pictures"));
            }
            decode(decoder, max_pixels, png_has_alpha(&head))
        }
        Ok(ImageFormat::WebP) => {
            let decoder = WebPDecoder::new(file)?;
            if decoder.has_animation() {
                return Err(ReadError::Unsupported("animated pictures"));
            }
            decode(decoder, max_pixels, true)
        }
        Ok(ImageFormat::Jpeg) => decode(JpegDecoder::new(file)?, max_pixels, false),
        _ => Err(ReadError::Format),
    }
}

/// Writes one picture as PNG.
pub(super) fn write_png(path: &Path, width: usize, height: usize, rgb: &[u8]) -> Result<(), ImageError> {
    let mut file = BufWriter::new(File::create(path)?);
    let side = |side: usize| u32::try_from(side).expect("sides are limited to what fits");
    PngEncoder::new(&mut file).write_image(rgb, side(width), side(height), ExtendedColorType::Rgb8)?;
    file.flush()?;
    Ok(())
}

/// As many first bytes of a file as tell its format and, of a PNG, its colour type.
const HEAD: u64 = 64;

/// Whether ComfyUI sees transparency in a PNG, were it there: in a palette or a channel of its own, but
/// not where one colour is declared transparent.
fn png_has_alpha(head: &[u8]) -> bool {
    const COLOUR_TYPE: usize = 25;
    const ONE_CHANNEL: u8 = 0;
    const THREE_CHANNELS: u8 = 2;
    !matches!(head.get(COLOUR_TYPE), Some(&ONE_CHANNEL | &THREE_CHANNELS))
}

fn limits(max_pixels: u64) -> Limits {
    const METADATA: u64 = 64 << 20;
    const WIDEST_PIXEL: u64 = 8;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels * WIDEST_PIXEL + METADATA);
    limits
}

fn decode(
    mut decoder: impl ImageDecoder,
    max_pixels: u64,
    has_alpha: bool,
) -> Result<(Pixels, Mask), ReadError> {
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ReadError::TooLarge { width, height, limit: max_pixels });
    }
    // A damaged note on orientation is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (rgb, alpha) = channels(picture)?;
    let mask = match alpha.filter(|_| has_alpha) {
        Some(alpha) => Mask::from_alpha8(height, width, alpha.into_iter()),
        None => Mask::of_opaque(),
    };
    Ok((Pixels::from_rgb8(height, width, &rgb), mask))
}

/// The RGB bytes of a picture and its alpha bytes, if it has some. Of 16 bits the upper 8 are taken.
fn channels(picture: DynamicImage) -> Result<(Vec<u8>, Option<Vec<u8>>), ReadError> {
    let upper = |values: Vec<u16>| values.into_iter().map(|value| (value >> 8) as u8).collect::<Vec<u8>>();
    let (values, per_pixel) = match picture {
        DynamicImage::ImageLuma8(picture) => (picture.into_raw(), 1),
        DynamicImage::ImageLumaA8(picture) => (picture.into_raw(), 2),
        DynamicImage::ImageRgb8(picture) => return Ok((picture.into_raw(), None)),
        DynamicImage::ImageRgba8(picture) => (picture.into_raw(), 4),
        DynamicImage::ImageLumaA16(picture) => (upper(picture.into_raw()), 2),
        DynamicImage::ImageRgb16(picture) => return Ok((upper(picture.into_raw()), None)),
        DynamicImage::ImageRgba16(picture) => (upper(picture.into_raw()), 4),
        _ => return Err(ReadError::Unsupported("pictures of 16-bit grey")),
    };
    let pixels = values.chunks_exact(per_pixel);
    let colour = |pixel: &[u8]| match *pixel {
        [red, green, blue, _] => [red, green, blue],
        _ => [pixel[0]; 3],
    };
    let alpha = (per_pixel != 1).then(|| pixels.clone().map(|pixel| pixel[per_pixel - 1]).collect());
    Ok((pixels.flat_map(colour).collect(), alpha))
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    use super::*;

    fn saved(picture: impl Into<DynamicImage>, name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        picture.into().save(&path).unwrap();
        (folder, path)
    }

    fn read_back(picture: impl Into<DynamicImage>, name: &str) -> (Vec<u8>, Mask) {
        let (_folder, path) = saved(picture, name);
        let (pixels, mask) = read(&path, 100).unwrap();
        (pixels.to_rgb8().next().unwrap(), mask)
    }

    #[test]
    fn colours_and_transparency_are_read_as_comfyui_reads_them() {
        let rgba = ImageBuffer::from_pixel(2, 1, Rgba([1u8, 2, 3, 255]));
        let (rgb, mask) = read_back(rgba.clone(), "a.png");
        assert_eq!((rgb, mask.values), (vec![1, 2, 3, 1, 2, 3], vec![0.0, 0.0]));
        let (rgb, mask) = read_back(rgba, "a.webp");
        assert_eq!((rgb, mask.values), (vec![1, 2, 3, 1, 2, 3], vec![0.0, 0.0]));

        let (rgb, mask) = read_back(ImageBuffer::from_pixel(1, 1, LumaA([9u8, 0])), "a.png");
        assert_eq!((rgb, mask.values), (vec![9, 9, 9], vec![1.0]));
        let (rgb, mask) = read_back(ImageBuffer::from_pixel(1, 1, Luma([9u8])), "a.png");
        assert_eq!((rgb, mask), (vec![9, 9, 9], Mask::of_opaque()));
        // Rounding 0x01ff to the nearest byte would give 2.
        let (rgb, _) = read_back(ImageBuffer::from_pixel(1, 1, Rgb([0x01ffu16, 0xff00, 0])), "a.png");
        assert_eq!(rgb, [1, 255, 0]);
    }

    #[test]
    fn one_transparent_colour_of_a_png_is_no_mask() {
        // A 1x1 PNG of colour type 2 whose tRNS chunk names its only colour.
        let bytes = hex::decode(concat!(
            "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000674524e",
            "53000100020003c94babf50000000c49444154789c636064620600000e0007d76fe4780000000049",
            "454e44ae426082"
        ));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.png");
        std::fs::write(&path, bytes.unwrap()).unwrap();
        let (pixels, mask) = read(&path, 100).unwrap();
        assert_eq!(pixels.to_rgb8().next().unwrap(), [1, 2, 3]);
        assert_eq!(mask, Mask::of_opaque());
    }

    #[test]
    fn what_cannot_be_read_alike_is_refused() {
        let (_folder, path) = saved(ImageBuffer::from_pixel(11, 10, Luma([9u8])), "a.png");
        let message = read(&path, 100).unwrap_err().to_string();
        assert_eq!(message, "the picture is 11x10, and the built-in engine takes at most 100 pixels");

        let (_folder, path) = saved(ImageBuffer::from_pixel(1, 1, Luma([9u16])), "a.png");
        assert!(matches!(read(&path, 100), Err(ReadError::Unsupported("pictures of 16-bit grey"))));

        std::fs::write(&path, "not a picture").unwrap();
        assert!(matches!(read(&path, 100), Err(ReadError::Format)));
        std::fs::write(&path, b"\x89PNG\r\n\x1a\n and then nothing").unwrap();
        assert!(matches!(read(&path, 100), Err(ReadError::Decode(_))));
    }
}
