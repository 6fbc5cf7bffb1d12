//! The files that an engine left, made into the outputs that the interface promises.
//!
//! Blocks where it writes a zip. Not here: what becomes an output, which `protocol` says.

use std::fs::File;
use std::io;
use std::path::Path;

use protocol::{FilledOutput, Making, RunError, RunErrorKind};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::ends::NewOutput;
use crate::engine::{ProducedFile, safe_file_name};

/// Gives each file the name of its output in the interface, and its place among the output's files.
pub(crate) fn name_outputs(
    outputs: &[FilledOutput],
    produced: &[ProducedFile],
    scratch: &Path,
) -> Result<Vec<NewOutput>, RunError> {
    let mut named = Vec::with_capacity(produced.len());
    for output in outputs {
        let files = made(output, produced, scratch)?;
        if files.is_empty() {
            let detail = format!("output `{}` (op {}) made no file", output.name, output.op);
            return Err(RunError::new(RunErrorKind::NoOutput, detail));
        }
        for (index, ProducedFile { file_name, media_type, path, .. }) in files.into_iter().enumerate() {
            let index = u32::try_from(index).expect("an engine bounds its files far below");
            named.push(NewOutput { output: output.name.clone(), index, file_name, media_type, path });
        }
    }
    Ok(named)
}

/// The files of one output.
fn made(
    output: &FilledOutput,
    produced: &[ProducedFile],
    scratch: &Path,
) -> Result<Vec<ProducedFile>, RunError> {
    let files = of_op(&output.op, produced);
    match &output.making {
        Making::Saved | Making::NamedFile => Ok(files.cloned().collect()),
        Making::Text { extension } => {
            let text = |(index, file): (usize, &ProducedFile)| ProducedFile {
                file_name: safe_file_name(&format!("{}_{:04}{extension}", output.name, index + 1)),
                media_type: media_type_of_text(extension).to_owned(),
                ..file.clone()
            };
            Ok(files.enumerate().map(text).collect())
        }
        Making::Zip { text } => {
            let file_name = safe_file_name(&format!("{}_batch_00001.zip", output.name));
            let path = scratch.join(format!("zip-{file_name}"));
            let pictures: Vec<&ProducedFile> = files.collect();
            let texts: Vec<&ProducedFile> = of_op(text, produced).collect();
            write_zip(&path, &pictures, &texts).map_err(|error| {
                let detail = format!("the zip of output `{}` cannot be written: {error}", output.name);
                RunError::new(RunErrorKind::NodeFault, detail)
            })?;
            let (op, media_type) = (output.op.clone(), "application/zip".to_owned());
            Ok(vec![ProducedFile { op, file_name, media_type, path }])
        }
    }
}

fn of_op<'a>(op: &'a str, produced: &'a [ProducedFile]) -> impl Iterator<Item = &'a ProducedFile> {
    produced.iter().filter(move |file| file.op == op)
}

/// Each picture with its text, as comfy-pack has them. One text goes with all pictures; of several, each with its own.
fn write_zip(path: &Path, pictures: &[&ProducedFile], texts: &[&ProducedFile]) -> io::Result<()> {
    // Pictures are compressed already, and texts are small.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = ZipWriter::new(File::create_new(path)?);
    let mut add = |name: String, file: &ProducedFile| {
        zip.start_file(name, options.large_file(true))?;
        io::copy(&mut File::open(&file.path)?, &mut zip).map(drop)
    };
    for (index, picture) in pictures.iter().enumerate() {
        add(format!("image_{index:05}.png"), picture)?;
        if let Some(text) = texts.get(index).or(texts.last()) {
            add(format!("text_{index:05}.txt"), text)?;
        }
    }
    zip.finish()?.sync_all()
}

fn media_type_of_text(extension: &str) -> &'static str {
    match extension.to_ascii_lowercase().as_str() {
        ".json" => "application/json",
        ".csv" => "text/csv; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn file(folder: &Path, op: &str, file_name: &str) -> ProducedFile {
        let path = folder.join(format!("{op}-{file_name}"));
        std::fs::write(&path, file_name).expect("written");
        let (op, file_name, media_type) = (op.to_owned(), file_name.to_owned(), "image/png".to_owned());
        ProducedFile { op, file_name, media_type, path }
    }

    fn output(name: &str, op: &str, making: Making) -> FilledOutput {
        FilledOutput { name: name.to_owned(), op: op.to_owned(), making }
    }

    #[test]
    fn texts_are_called_after_their_output_and_files_keep_their_names() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let produced = ["a.png", "b.png"].map(|name| file(folder.path(), "1", name));
        let text = file(folder.path(), "2", "text_00001.txt");
        let produced = [&produced[..], &[text]].concat();
        let text = Making::Text { extension: ".json".to_owned() };
        let outputs = [output("note/1", "2", text), output("picture", "1", Making::Saved)];
        let named = name_outputs(&outputs, &produced, folder.path()).expect("all are there");
        let found: Vec<_> = named
            .iter()
            .map(|file| (&*file.output, file.index, &*file.file_name, &*file.media_type))
            .collect();
        let expected = [
            ("note/1", 0, "1_0001.json", "application/json"),
            ("picture", 0, "a.png", "image/png"),
            ("picture", 1, "b.png", "image/png"),
        ];
        assert_eq!(found, expected);
        let missing = name_outputs(&[output("x", "9", Making::NamedFile)], &produced, folder.path());
        assert_eq!(missing.expect_err("no file").kind, RunErrorKind::NoOutput);
    }

    #[test]
    fn zip_has_each_picture_with_its_text() {
        let check = |texts: &[&str], expected: &[(&str, &str)]| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut produced: Vec<_> = ["a.png", "b.png"].map(|name| file(folder.path(), "1", name)).to_vec();
            produced.extend(texts.iter().map(|text| file(folder.path(), "1_text", text)));
            let zip = output("pack", "1", Making::Zip { text: "1_text".to_owned() });
            let named = name_outputs(&[zip], &produced, folder.path()).expect("it is made");
            assert_eq!((&*named[0].file_name, named.len()), ("pack_batch_00001.zip", 1));
            let mut zip = zip::ZipArchive::new(File::open(&named[0].path).expect("there")).expect("a zip");
            let entries: Vec<(String, String)> = (0..zip.len())
                .map(|place| {
                    let (mut entry, mut text) = (zip.by_index(place).expect("an entry"), String::new());
                    entry.read_to_string(&mut text).expect("it is whole");
                    (entry.name().expect("a name").into_owned(), text)
                })
                .collect();
            let expected: Vec<_> =
                expected.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
            assert_eq!(entries, expected);
        };
        let [first, second] = [("image_00000.png", "a.png"), ("image_00001.png", "b.png")];
        check(&["t"], &[first, ("text_00000.txt", "t"), second, ("text_00001.txt", "t")]);
        check(&["t", "u"], &[first, ("text_00000.txt", "t"), second, ("text_00001.txt", "u")]);
    }
}
