//! What somebody may have meant who wrote a word that is not known.

/// How alike two words must be, from 0 to 1 by Jaro and Winkler's measure.
const ALIKE: f64 = 0.7;

/// The known word that looks most like this one, if any does.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|known| (strsim::jaro_winkler(word, known), known));
    let (likeness, best) = scored.max_by(|left, right| left.0.total_cmp(&right.0))?;
    (likeness >= ALIKE).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_word_that_looks_alike_is_meant() {
        let known = ["pixelate", "upscale", "portrait"];
        assert_eq!(nearest("pixelat", known), Some("pixelate"));
        assert_eq!(nearest("upscaler", known), Some("upscale"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest("pixelate", []), None);
    }
}
