//! `comfy-farm workspace plan`.

use mesh::store::ByteSize;
use node::workspace::plan::{Plan, Step};
use serde_json::json;

use super::PlanArguments;
use crate::commands::bundle::read;
use crate::show;

pub(super) fn plan(arguments: &PlanArguments) -> anyhow::Result<()> {
    let bundle = read(&arguments.file)?;
    let platform = arguments.platform.clone().unwrap_or_else(node::platform);
    let (lockfile, travelling) = (&bundle.lockfile, &bundle.travelling);
    let plan = node::workspace::plan::plan(lockfile, travelling, &platform, arguments.accelerator);
    if arguments.json {
        show::json(&json!(plan));
        return Ok(());
    }
    println!("for {platform}, {}:", arguments.accelerator);
    plan.steps.iter().for_each(|step| println!("{}", line(step)));
    summary(&plan);
    for repair in &bundle.repairs {
        eprintln!("note: {repair}");
    }
    Ok(())
}

fn line(step: &Step) -> String {
    match step {
        Step::Git { url, commit, mirrors, path } => {
            let mirrors: String = mirrors.iter().map(|url| format!("\n  else {url}")).collect();
            format!("git       {path}\n  {url} at {commit}{mirrors}")
        }
        Step::Registry { id, version, url, path } => format!("registry  {path}\n  {id} {version}\n  {url}"),
        Step::Carried { files, path } => {
            format!("carried   {path}\n  {} as blob {}", ByteSize(files.size), files.hash)
        }
        Step::Python { version } => format!("Python    {version}"),
        Step::Package { name, pin, url, hashes } => {
            let pinned = match url {
                None => format!("package   {name}\n  {pin}"),
                Some(url) => format!("package   {name}=={pin}\n  {url}"),
            };
            match hashes.as_slice() {
                [] => pinned,
                [sha256] => format!("{pinned}\n  sha256:{sha256}"),
                hashes => format!("{pinned}\n  one of {} files by their SHA-256", hashes.len()),
            }
        }
        Step::Model { path, size, sha256, blob, urls } => {
            let names = [
                blob.map(|blob| format!("\n  blob {blob}")),
                sha256.map(|sha256| format!("\n  sha256:{sha256}")),
            ];
            let names: String = names.into_iter().flatten().collect();
            let urls: String = urls.iter().map(|url| format!("\n  {url}")).collect();
            format!("model     {path}, {}{names}{urls}", ByteSize(*size))
        }
    }
}

fn summary(plan: &Plan) {
    let sizes = plan.steps.iter().map(|step| if let Step::Model { size, .. } = step { *size } else { 0 });
    let models = plan.steps.iter().filter(|step| matches!(step, Step::Model { .. })).count();
    println!("\n{} steps, {models} models of {} together", plan.steps.len(), ByteSize(sizes.sum()));
    let code = plan.code.map_or_else(|| "once the registry has answered".to_owned(), |code| code.to_string());
    println!("environment {}\ncode        {code}\nlockfile    {}", plan.environment, plan.lockfile);
    println!(
        "uv adds what these packages need and no lockfile names when a node resolves them, and picks their files"
    );
    if plan.equivalent {
        println!("equivalent and not identical: torch is another build than the recorded one");
    }
    plan.system.iter().for_each(|(kind, need)| println!("of the system: {kind} {need}"));
    plan.lacking.iter().for_each(|lacking| println!("lacking: {lacking}"));
}
