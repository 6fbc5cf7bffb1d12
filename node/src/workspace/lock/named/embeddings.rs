//! Which embeddings a prompt names, as ComfyUI reads them out of its text.
//!
//! Not here: where their files lie.

/// What stands before the name of an embedding, at the beginning of a part of the prompt or after a space or line break.
const MARK: &str = "embedding:";

/// The names in a text, as they stand there; a comma at either end may belong to the name or not.
pub(super) fn names(text: &str) -> Vec<String> {
    if !text.contains(MARK) {
        return Vec::new();
    }
    // Parentheses that are meant as such are no weights.
    let text = text.replace("\\)", "\0\u{1}").replace("\\(", "\0\u{2}");
    let (mut names, mut open) = (Vec::new(), vec![text.as_str()]);
    while let Some(text) = open.pop() {
        for part in parts(text) {
            match part.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
                Some(inner) => open.push(without_weight(inner)),
                None => names.extend(plain_names(&part.replace("\0\u{1}", ")").replace("\0\u{2}", "("))),
            }
        }
    }
    names
}

/// The parts of a text: what is in parentheses, with these, and what is between them.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth) = (Vec::new(), 0, 0_i64);
    for (at, character) in text.char_indices() {
        match character {
            '(' => {
                if depth == 0 && begin < at {
                    parts.push(&text[begin..at]);
                    begin = at;
                }
                depth += 1;
            }
            ')' => {
                depth -= 1;
                if depth == 0 {
                    parts.push(&text[begin..=at]);
                    begin = at + 1;
                }
            }
            _ => {}
        }
    }
    parts.extend(Some(&text[begin..]).filter(|rest| !rest.is_empty()));
    parts
}

/// What is in parentheses without the number that its last colon stands before.
fn without_weight(inner: &str) -> &str {
    match inner.rsplit_once(':') {
        Some((text, weight)) if !text.is_empty() && weight.trim().parse::<f64>().is_ok() => text,
        _ => inner,
    }
}

fn plain_names(text: &str) -> Vec<String> {
    let is_marked = |at: usize| at == 0 || text[..at].ends_with([' ', '\n']);
    let marked = text.match_indices(MARK).filter(|(at, _)| is_marked(*at));
    let name = |(at, mark): (usize, &str)| text[at + mark.len()..].split_whitespace().next();
    marked.filter_map(name).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let mut found = names(text);
        found.sort();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn names_stand_anywhere_in_a_prompt_with_and_without_weights() {
        check("embedding:EasyNegative", &["EasyNegative"]);
        check("a cat, embedding:sub/x.pt, on a mat", &["sub/x.pt,"]);
        check("one\nembedding:a embedding:b.safetensors", &["a", "b.safetensors"]);
        check("a (embedding:x:1.2) b", &["x"]);
        check("((embedding:x), (very (embedding:y:0.8) nice:1.1))", &["x", "y"]);
        check(r"embedding:a\(b\) c", &["a(b)"]);
        check("(embedding: x)", &["x"]);
    }

    #[test]
    fn what_comfyui_reads_as_words_is_no_name() {
        check("a photo of an embedding", &[]);
        check("cat,embedding:x", &[]);
        check("embedding:", &[]);
        check("x) (embedding:y) z", &[]);
    }
}
