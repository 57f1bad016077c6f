//! What an agent runs: exactly one of `command`, `handler`, `image`, or `model` with `instructions`.

use std::path::{Path, PathBuf};

use crate::spec::{
    codes,
    context::Cx,
    files::{Found, join},
    keys::AGENT_SPEC,
    model::{Body, CommandBody, HandlerBody, ImageBody, ModelBody, defaults},
    source::Span,
    view::View,
};

const BODIES: [&str; 5] = ["command", "handler", "image", "model", "instructions"];

/// The body. `None` if there is none, or one that cannot run; then an error was pushed.
pub(super) fn read(spec: View<'_>, cx: &mut Cx<'_>) -> Option<Body> {
    if !spec.is_map() {
        return None;
    }
    let [command, handler, image, model, instructions] = BODIES.map(|key| (key, spec.get(key)));
    let planner = if model.1.is_present() {
        model
    } else {
        instructions
    };
    let present: Vec<_> = [command, handler, image, planner]
        .into_iter()
        .filter(|(_, view)| view.is_present())
        .collect();
    if let [(first, view), (second, other), ..] = present[..] {
        let message = format!("`{second}` beside `{first}`: an agent runs exactly one thing");
        let problem = cx.at(&codes::MANY_BODIES, other.key(), message);
        let problem = problem.related(&cx.file, view.key(), format!("`{first}` is here"));
        cx.push(problem.hint("keep one of command, handler, image, or model with instructions"));
    }
    let Some((key, view)) = present.first().copied() else {
        // A body whose key is misspelt has been reported as that.
        let meant = |key: &str| {
            AGENT_SPEC
                .meant(key)
                .is_some_and(|meant| BODIES.contains(&meant))
        };
        if spec.pairs().any(|(key, _)| meant(&key.text)) {
            return None;
        }
        let problem = cx.at(&codes::NO_BODY, spec.key(), "`spec` says nothing to run");
        cx.push(problem.hint("add one of command, handler, image, or model with instructions"));
        return None;
    };
    match key {
        "command" => Some(Body::Command(CommandBody {
            argv: program(view, cx)?,
        })),
        "handler" => self::handler(view, cx),
        "image" => Some(Body::Image(ImageBody {
            image: view.string()?,
        })),
        _ => planner_body(model.1, instructions.1, cx),
    }
}

fn handler(view: View<'_>, cx: &mut Cx<'_>) -> Option<Body> {
    let argv = program(
        if view.is_map() {
            view.get("command")
        } else {
            view
        },
        cx,
    )?;
    let max_output = view.get("maxOutput").bytes(defaults::HANDLER_MAX_OUTPUT);
    Some(Body::Handler(HandlerBody { argv, max_output }))
}

fn planner_body(model: View<'_>, instructions: View<'_>, cx: &mut Cx<'_>) -> Option<Body> {
    for (there, key, missing, other) in [
        (model, "model", instructions, "instructions"),
        (instructions, "instructions", model, "model"),
    ] {
        if there.is_present() && !missing.is_present() {
            let message = format!("`{key}` without `{other}`: a planner agent needs both");
            cx.report(&codes::MISSING_KEY, there.key(), message);
        }
    }
    Some(Body::Model(ModelBody {
        provider: model.get("provider").string()?,
        name: model.get("name").string()?,
        config: model.get("config").json(),
        instructions: instructions.string()?,
    }))
}

/// A program and its arguments. A text is run by `sh -c`; a program with a `/` becomes absolute and must be there.
pub(super) fn program(view: View<'_>, cx: &mut Cx<'_>) -> Option<Vec<String>> {
    if let Some(text) = view.text() {
        return Some(["sh", "-c", text].map(str::to_owned).into());
    }
    if !view.is_list() {
        return None;
    }
    let mut argv: Vec<String> = view.items().filter_map(View::string).collect();
    let Some((first, span)) = argv.first_mut().zip(view.items().next().map(View::span)) else {
        cx.report(
            &codes::NO_VALUE,
            view.span(),
            "the list is empty, expected a program and its arguments",
        );
        return None;
    };
    if first.trim().is_empty() {
        cx.report(&codes::NO_VALUE, span, "the program has no name");
        return None;
    }
    if first.contains('/') {
        let path = cx.resolve(first);
        check_file(&path, first, span, cx);
        let Some(text) = path.to_str() else {
            cx.report(
                &codes::BAD_PATH,
                span,
                "the program's folder has a name that is not UTF-8",
            );
            return None;
        };
        *first = text.to_owned();
    } else {
        check_search_path(first, span, cx);
    }
    Some(argv)
}

fn check_file(path: &Path, shown: &str, span: Span, cx: &mut Cx<'_>) {
    match cx.find(path) {
        Some(Found::Executable) => {}
        Some(Found::File) => {
            let problem = cx.at(
                &codes::NOT_EXECUTABLE,
                span,
                format!("program `{shown}` has no execute permission"),
            );
            cx.push(problem.hint(format!("run `chmod +x {shown}`")));
        }
        Some(Found::Folder | Found::Other) => {
            cx.report(
                &codes::BAD_PATH,
                span,
                format!("program `{shown}` is not a file"),
            );
        }
        None => cx.report(
            &codes::UNREADABLE,
            span,
            format!("program `{shown}` does not exist"),
        ),
    }
}

/// Warns if none of the folders of `PATH` has the program; without a `PATH` there is nothing to say.
fn check_search_path(program: &str, span: Span, cx: &mut Cx<'_>) {
    let Some(search) = (cx.options.env)("PATH") else {
        return;
    };
    let folders = search.split(':').filter(|folder| folder.starts_with('/'));
    let found = folders
        .map(|folder| join(&PathBuf::from(folder), program))
        .any(|path| cx.find(&path) == Some(Found::Executable));
    if !found {
        cx.report(
            &codes::PROGRAM_NOT_FOUND,
            span,
            format!("program `{program}` is in no folder of PATH"),
        );
    }
}
