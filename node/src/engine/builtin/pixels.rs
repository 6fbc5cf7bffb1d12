//! Pictures as ComfyUI computes with them, and the arithmetic of the ops, bit for bit.
//!
//! Not here: files (`picture.rs`) and graphs (`plan.rs`). The rules were checked against ComfyUI 0.3.75
//! on torch 2.11; where one looks odd, that is how torch does it on a processor with AVX2.

/// A batch of pictures of one size, as torch holds it: rows of pixels of three floats from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pixels {
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// `batch * height * width * 3` values.
    pub(super) values: Vec<f32>,
}

/// A batch of masks of one size: one float a pixel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mask {
    pub(super) height: usize,
    pub(super) width: usize,
    /// `batch * height * width` values.
    pub(super) values: Vec<f32>,
}

const CHANNELS: usize = 3;

/// How ImageScale brings a picture to another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crop {
    /// It stretches it.
    Disabled,
    /// It cuts the longer side evenly first.
    Center,
}

impl Pixels {
    /// EmptyImage: one colour, `0xRRGGBB`. The division is in double precision, as Python's is.
    pub(super) fn filled(batch: usize, height: usize, width: usize, color: u32) -> Self {
        let channel = |shift: u32| (f64::from((color >> shift) & 0xff) / 255.0) as f32;
        let pixel = [channel(16), channel(8), channel(0)];
        Self { batch, height, width, values: pixel.repeat(batch * height * width) }
    }

    /// What LoadImage makes of the bytes of an RGB picture.
    pub(super) fn from_rgb8(height: usize, width: usize, rgb: &[u8]) -> Self {
        debug_assert_eq!(rgb.len(), height * width * CHANNELS);
        Self { batch: 1, height, width, values: rgb.iter().map(|&value| f32::from(value) / 255.0).collect() }
    }

    /// What SaveImage writes of each picture of the batch: RGB bytes, cut off and not rounded.
    pub(super) fn to_rgb8(&self) -> impl Iterator<Item = Vec<u8>> {
        let one = self.height * self.width * CHANNELS;
        let byte = |&value: &f32| (255.0 * value).clamp(0.0, 255.0) as u8;
        self.values.chunks_exact(one).map(move |picture| picture.iter().map(byte).collect())
    }

    /// ImageInvert.
    pub(super) fn inverted(&self) -> Self {
        Self { values: self.values.iter().map(|value| 1.0 - value).collect(), ..*self }
    }

    /// ImageCrop: a corner beyond the picture moves to its last pixel, a size beyond its edge ends there.
    pub(super) fn cropped(&self, width: usize, height: usize, x: usize, y: usize) -> Self {
        let (x, y) = (x.min(self.width - 1), y.min(self.height - 1));
        self.part(x, y, width.min(self.width - x), height.min(self.height - y))
    }

    /// ImageScale by `nearest-exact`. A width or height of 0 follows from the other; none if nothing of
    /// the picture would be left.
    pub(super) fn scaled(&self, width: usize, height: usize, crop: Crop) -> Option<Self> {
        let (width, height) = match (width, height) {
            (0, 0) => return Some(self.clone()),
            (0, height) => (proportional(self.width, height, self.height), height),
            (width, 0) => (width, proportional(self.height, width, self.width)),
            both => both,
        };
        let source = match crop {
            Crop::Disabled => self.clone(),
            Crop::Center => self.centered(width, height)?,
        };
        let rows = nearest_indices(source.height, height, width + height);
        let columns = nearest_indices(source.width, width, width + height);
        let mut values = Vec::with_capacity(source.batch * height * width * CHANNELS);
        for picture in 0..source.batch {
            for &row in &rows {
                let start = (picture * source.height + row) * source.width;
                for &column in &columns {
                    let pixel = (start + column) * CHANNELS;
                    values.extend_from_slice(&source.values[pixel..pixel + CHANNELS]);
                }
            }
        }
        Some(Self { batch: source.batch, height, width, values })
    }

    /// The middle part that has the proportions of `width` and `height`.
    fn centered(&self, width: usize, height: usize) -> Option<Self> {
        let (old_width, old_height) = (self.width as f64, self.height as f64);
        let old_aspect = old_width / old_height;
        let new_aspect = width as f64 / height as f64;
        // Python rounds halves to the even number.
        let margin = |old: f64, ratio: f64| ((old - old * ratio) / 2.0).round_ties_even() as usize;
        let (x, y) = if old_aspect > new_aspect {
            (margin(old_width, new_aspect / old_aspect), 0)
        } else if old_aspect < new_aspect {
            (0, margin(old_height, old_aspect / new_aspect))
        } else {
            (0, 0)
        };
        let (width, height) = (self.width - 2 * x, self.height - 2 * y);
        (width > 0 && height > 0).then(|| self.part(x, y, width, height))
    }

    /// A rectangle that lies inside the picture.
    fn part(&self, x: usize, y: usize, width: usize, height: usize) -> Self {
        debug_assert!(x + width <= self.width && y + height <= self.height);
        let mut values = Vec::with_capacity(self.batch * height * width * CHANNELS);
        for picture in 0..self.batch {
            for row in y..y + height {
                let start = ((picture * self.height + row) * self.width + x) * CHANNELS;
                values.extend_from_slice(&self.values[start..start + width * CHANNELS]);
            }
        }
        Self { batch: self.batch, height, width, values }
    }
}

impl Mask {
    /// LoadImage's mask of a picture without transparency: 64 by 64, whatever the picture's size.
    pub(super) fn of_opaque() -> Self {
        Self { height: 64, width: 64, values: vec![0.0; 64 * 64] }
    }

    /// LoadImage's mask: what is transparent is 1.
    pub(super) fn from_alpha8(height: usize, width: usize, alpha: impl Iterator<Item = u8>) -> Self {
        Self { height, width, values: alpha.map(|value| 1.0 - f32::from(value) / 255.0).collect() }
    }

    /// MaskToImage: a grey picture.
    pub(super) fn to_pixels(&self) -> Pixels {
        let batch = self.values.len() / (self.height * self.width);
        let values = self.values.iter().flat_map(|&value| [value; CHANNELS]).collect();
        Pixels { batch, height: self.height, width: self.width, values }
    }
}

/// The other side of a picture that is scaled to `side`, as Python rounds it.
pub(super) fn proportional(other: usize, side: usize, old_side: usize) -> usize {
    let exact = (other * side) as f64 / old_side as f64;
    exact.round_ties_even().max(1.0) as usize
}

/// Which source row (or column) each row of the result shows.
///
/// torch takes another path for small results, where the width and height of the result add up to at
/// most 128; the two differ by one where a rounding error falls on a pixel's edge.
fn nearest_indices(source: usize, target: usize, width_and_height: usize) -> Vec<usize> {
    const SMALL: usize = 128;
    let scale = source as f32 / target as f32;
    let index = |place: usize| {
        let position = if width_and_height <= SMALL {
            ((place as f64 + 0.5) * f64::from(scale)) as f32
        } else {
            // Multiplication and subtraction are one instruction there, rounded once.
            let from_middle = scale.mul_add(place as f32 + 0.5, -0.5).max(0.0);
            (f64::from(from_middle) + 0.5) as f32
        };
        (position.floor() as usize).min(source - 1)
    };
    (0..target).map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose red value is the column and whose green value is the row, in 255ths.
    fn numbered(width: usize, height: usize) -> Pixels {
        let rgb: Vec<u8> =
            (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect();
        Pixels::from_rgb8(height, width, &rgb)
    }

    fn corner(pixels: &Pixels) -> (f32, f32) {
        ((pixels.values[0] * 255.0).round(), (pixels.values[1] * 255.0).round())
    }

    #[test]
    fn every_byte_survives_loading_and_saving() {
        let rgb: Vec<u8> = (0..=255).flat_map(|value| [value; 3]).collect();
        let saved: Vec<Vec<u8>> = Pixels::from_rgb8(16, 16, &rgb).to_rgb8().collect();
        assert_eq!(saved, [rgb]);
    }

    #[test]
    fn inverting_cuts_off_where_torch_does() {
        // From real ComfyUI: `1.0 - value` in single precision falls just below some whole bytes.
        let rgb: Vec<u8> = (0..=255).flat_map(|value| [value; 3]).collect();
        let saved = Pixels::from_rgb8(16, 16, &rgb).inverted().to_rgb8().next().unwrap();
        let short: Vec<usize> =
            (0..256).filter(|&value| usize::from(saved[3 * value]) != 255 - value).collect();
        assert_eq!(short, (65..128).step_by(2).chain(128..255).collect::<Vec<_>>());
        assert!(short.iter().all(|&value| usize::from(saved[3 * value]) == 254 - value));
    }

    #[test]
    fn empty_image_has_the_colour_in_every_pixel() {
        let saved: Vec<Vec<u8>> = Pixels::filled(2, 1, 2, 0xff8001).to_rgb8().collect();
        assert_eq!(saved, [[255, 128, 1, 255, 128, 1], [255, 128, 1, 255, 128, 1]]);
    }

    #[test]
    fn crop_stays_inside_the_picture() {
        let check = |(width, height, x, y), size, from| {
            let part = numbered(10, 6).cropped(width, height, x, y);
            assert_eq!(((part.width, part.height), corner(&part)), (size, from));
        };
        check((4, 3, 2, 1), (4, 3), (2.0, 1.0));
        check((100, 100, 2, 1), (8, 5), (2.0, 1.0));
        check((4, 3, 50, 50), (1, 1), (9.0, 5.0));
    }

    #[test]
    fn nearest_exact_takes_the_rows_that_torch_takes() {
        // Each of these was asked of torch 2.11 itself; the first ones are where rounding decides.
        let check = |source, target, other, place: usize, index| {
            assert_eq!(nearest_indices(source, target, target + other)[place], index, "{source} -> {target}");
        };
        check(2, 141, 4, 70, 1);
        check(2, 41, 4, 20, 0);
        check(2, 47, 4, 23, 0);
        assert_eq!(nearest_indices(3, 8, 16), [0, 0, 0, 1, 1, 2, 2, 2]);
        assert_eq!(nearest_indices(8, 3, 6), [1, 4, 6]);
    }

    #[test]
    fn scale_follows_the_side_that_is_not_given() {
        let check = |width, height, size| {
            let scaled = numbered(10, 6).scaled(width, height, Crop::Disabled).unwrap();
            assert_eq!((scaled.width, scaled.height), size);
        };
        check(0, 0, (10, 6));
        check(5, 0, (5, 3));
        check(0, 3, (5, 3));
        // 6 * 1 / 10 and 2.5 by Python's rule: halves go to the even number.
        check(1, 0, (1, 1));
        assert_eq!(proportional(5, 1, 2), 2);
        assert_eq!(proportional(7, 1, 2), 4);
    }

    #[test]
    fn center_crop_cuts_the_longer_side_before_scaling() {
        let scaled = numbered(10, 6).scaled(3, 3, Crop::Center).unwrap();
        // Columns 2 to 7 are left of 10; their middle ones are 3, 5 and 7.
        let reds: Vec<f32> =
            scaled.values.iter().step_by(3).take(3).map(|red| (red * 255.0).round()).collect();
        assert_eq!(reds, [3.0, 5.0, 7.0]);
        assert_eq!(numbered(2, 200).scaled(1000, 1, Crop::Center), None);
    }

    #[test]
    fn mask_is_one_where_the_picture_is_transparent() {
        let mask = Mask::from_alpha8(1, 2, [0, 255].into_iter());
        assert_eq!(mask.values, [1.0, 0.0]);
        assert_eq!(mask.to_pixels().to_rgb8().next().unwrap(), [255, 255, 255, 0, 0, 0]);
    }
}
