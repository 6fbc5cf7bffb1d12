//! `comfy-farm run`: submit, follow, save.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::args::RunArguments;
use crate::client::{Client, Terms};
use crate::commands::{connect, text};
use crate::failure::Failure;
use crate::settings::SettingsFile;
use crate::show::{self, JobProgress};

pub(super) async fn run(arguments: &RunArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let (client, as_json) = connect(&arguments.tool, file);
    let (texts, files) = parse(&arguments.parameters)?;
    let out = &arguments.out;
    std::fs::create_dir_all(out)
        .map_err(|error| Failure::Usage(format!("`{}` cannot take the outputs: {error}", out.display())))?;
    let terms = Terms { priority: arguments.priority, ttl: arguments.ttl };
    let job = client.submit(&arguments.workflow, &texts, &files, terms).await?;
    if arguments.detach {
        if as_json {
            show::json(&job)
        } else {
            println!("{}", text(&job, "id"))
        }
        return Ok(());
    }
    let id = text(&job, "id").to_owned();
    eprintln!("job {id} of {}", text(&job, "workflow"));
    let followed = tokio::select! {
        job = follow(&client, &id) => job?,
        () = super::asked_to_stop() => {
            eprintln!("the job goes on; `comfy-farm cancel {id}` ends it");
            return Ok(());
        }
    };
    let saved = save_outputs(&client, &followed, &arguments.out).await?;
    if as_json {
        show::json(&json!({ "job": followed, "saved": saved }));
    } else {
        saved.iter().for_each(|path| println!("{}", path.display()));
    }
    Ok(())
}

/// `key=value` is a text, `key=@file` a file.
type Parameters = (Vec<(String, String)>, Vec<(String, PathBuf)>);

fn parse(parameters: &[String]) -> Result<Parameters, Failure> {
    let (mut texts, mut files) = (Vec::new(), Vec::new());
    for parameter in parameters {
        let (key, value) = parameter
            .split_once('=')
            .ok_or_else(|| Failure::Usage(format!("`{parameter}` is not KEY=VALUE or KEY=@FILE")))?;
        match value.strip_prefix('@') {
            Some(path) => files.push((key.to_owned(), PathBuf::from(path))),
            None => texts.push((key.to_owned(), value.to_owned())),
        }
    }
    Ok((texts, files))
}

/// Shows a job's progress until it has succeeded; any other end is an error.
pub(super) async fn follow(client: &Client, id: &str) -> anyhow::Result<Value> {
    let mut progress = JobProgress::new();
    let job = client.follow(id, |event| progress.show(event)).await;
    progress.finish();
    let job = job?;
    match text(&job, "state") {
        "succeeded" => Ok(job),
        "failed" => Err(failed(id, &job["error"]).into()),
        state => Err(Failure::JobNotDone { job: id.to_owned(), state: state.to_owned() }.into()),
    }
}

/// The failure of a job, with the file that it wanted where that is the reason.
fn failed(id: &str, error: &Value) -> Failure {
    let mut detail = text(error, "detail").to_owned();
    let hint = error["url"].as_str().map(|url| {
        let node = error["node"].as_str().map_or_else(String::new, |node| format!(", which node {node} wants"));
        detail.push_str(&format!("\n  the bundle lacks {url}{node}"));
        "`comfy-farm pack --comfyui DIR --workflow FILE --trace` makes a bundle that has it; `comfy-farm deploy` that"
    });
    Failure::JobFailed { job: id.to_owned(), detail, hint }
}

/// Saves every output of a job as `JOB-OUTPUT-INDEX.ext`, which no other job overwrites.
pub(super) async fn save_outputs(
    client: &Client,
    job: &Value,
    folder: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    let id = text(job, "id");
    let short = &id[id.len().saturating_sub(10)..];
    let mut saved = Vec::new();
    for output in job["outputs"].as_array().into_iter().flatten() {
        let extension =
            Path::new(text(output, "file_name")).extension().unwrap_or_default().to_string_lossy();
        let extension: String = extension.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        let extension = if extension.is_empty() { "bin" } else { &extension };
        let name = format!("{short}-{}-{}.{extension}", text(output, "output"), output["index"]);
        // An output's name is an identifier, but it comes from a server.
        let path = folder.join(name.replace(['/', '\\'], "_"));
        client.save(text(output, "url"), &path).await?;
        saved.push(path);
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_a_bundle_lacks_is_told_with_who_wants_it_and_the_command_that_adds_it() {
        let error =
            json!({ "detail": "it wants a file", "url": "https://models.example.org/a.pth", "node": "7" });
        let Failure::JobFailed { detail, hint, .. } = failed("1", &error) else { panic!("it failed") };
        assert_eq!(
            detail,
            "it wants a file\n  the bundle lacks https://models.example.org/a.pth, which node 7 wants"
        );
        assert!(hint.is_some_and(|hint| hint.contains("--trace")), "{hint:?}");
        let error = json!({ "detail": "it broke", "url": null, "node": null });
        let Failure::JobFailed { detail, hint, .. } = failed("1", &error) else { panic!("it failed") };
        assert_eq!((detail.as_str(), hint), ("it broke", None));
    }

    #[test]
    fn parameters_are_texts_and_files() {
        let words = ["prompt=a=b".to_owned(), "image=@cat.png".to_owned()];
        let (texts, files) = parse(&words).expect("both are KEY=VALUE");
        assert_eq!(texts, [("prompt".to_owned(), "a=b".to_owned())]);
        assert_eq!(files, [("image".to_owned(), PathBuf::from("cat.png"))]);
        assert!(parse(&["prompt".to_owned()]).is_err());
    }
}
