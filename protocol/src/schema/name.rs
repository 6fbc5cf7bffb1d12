//! How inputs and outputs get their names from an op's title, consumer and class: comfy-pack's rules.
//!
//! Not here: which op is an input or output.

use unicode_ident::{is_xid_continue, is_xid_start};

/// What comfy-pack names things that have no usable letters; it then fails on them.
pub(super) const NAMELESS: &str = "_";

/// Whether a title is used as it is: an identifier, in any script.
pub(super) fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|first| first == '_' || is_xid_start(first))
        && characters.all(is_xid_continue)
}

/// The nearest lower-case name to a text; [`NAMELESS`] where nothing is left.
pub(super) fn slug(text: &str) -> String {
    let mut slug = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('_') {
            slug.push('_');
        }
    }
    if slug.ends_with('_') {
        slug.pop();
    }
    if slug.is_empty() { NAMELESS.to_owned() } else { slug }
}

/// The name of an op without a title: its class, of comfy-pack's classes without any leading letters
/// that `CPackInput` has.
pub(super) fn slug_of_class(class_type: &str) -> String {
    match class_type.starts_with("CPack") {
        true => slug(class_type.trim_start_matches(|letter| "CPackInput".contains(letter))),
        false => slug(class_type),
    }
}

/// The name for people: words with a capital each, as Python's `str.title` and pydantic write it.
pub(super) fn title_of(name: &str) -> String {
    let mut title = String::with_capacity(name.len());
    let mut in_word = false;
    for character in name.chars() {
        if character == '_' {
            title.push(' ');
        } else if in_word {
            title.extend(character.to_lowercase());
        } else {
            title.extend(character.to_uppercase());
        }
        in_word = character.is_lowercase() || character.is_uppercase();
    }
    title.trim().to_owned()
}

/// The first of `name`, `name_<op>`, `name_<op>_<op>`, … that is not taken.
pub(super) fn unique(mut name: String, op: &str, is_taken: impl Fn(&str) -> bool) -> String {
    while is_taken(&name) {
        name = format!("{name}_{op}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slug_collapses_what_is_no_letter_and_keeps_leading_digits_bare() {
        let cases = [
            ("My Prompt (v2)", "my_prompt_v2"),
            ("1st", "1st"),
            ("__a--b__", "a_b"),
            ("model.width", "model_width"),
            ("  ", NAMELESS),
            ("日本 語", NAMELESS),
            ("", NAMELESS),
        ];
        for (text, expected) in cases {
            assert_eq!(slug(text), expected, "{text}");
        }
    }

    #[test]
    fn class_names_lose_leading_letters_one_by_one() {
        let cases = [
            ("CPackInputString", "string"),
            ("CPackInputInt", NAMELESS),
            ("CPackInputImage", "mage"),
            ("CPackOutputZip", "outputzip"),
            ("PreviewImage", "previewimage"),
        ];
        for (class, expected) in cases {
            assert_eq!(slug_of_class(class), expected, "{class}");
        }
    }

    #[test]
    fn identifiers_of_any_script_are_taken_as_they_are() {
        for identifier in ["prompt", "CFG", "été", "日本語", "_", "__x__", "class", "a1"] {
            assert!(is_identifier(identifier), "{identifier}");
        }
        for other in ["", " ", "1st", "a b", "a-b", "a.b", "²"] {
            assert!(!is_identifier(other), "{other}");
        }
    }

    #[test]
    fn titles_have_a_capital_after_whatever_is_no_letter() {
        for (name, title) in [("steps_count", "Steps Count"), ("1st", "1St"), ("CFG", "Cfg"), ("été", "Été")]
        {
            assert_eq!(title_of(name), title);
        }
    }
}
