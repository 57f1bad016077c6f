//! `volary explain`: what an error code means and what to do.

use clap::Args;
use serde::Serialize;
use volary::{deploy::spec, ops};

use crate::{
    codes,
    error::{CliError, Outcome},
    exit::Exit,
    settle::Context,
    ui::table::Table,
};

/// `volary explain`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An error code, like V8003.
    #[arg(value_name = "CODE", required_unless_present = "list")]
    code: Option<String>,
    /// List every code with its title.
    #[arg(long, conflicts_with = "code")]
    list: bool,
}

/// One code of any part of the program.
#[derive(Debug, Serialize)]
struct Page {
    code: &'static str,
    title: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    hint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
}

/// Prints the page of a code, or the list.
pub fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let pages = pages();
    match &arguments.code {
        None => list(context, &pages),
        Some(wanted) => {
            let found = pages
                .iter()
                .find(|page| page.code.eq_ignore_ascii_case(wanted));
            let missing = || {
                CliError::new(
                    codes::NO_CODE,
                    format!("no part of this build has the code `{wanted}`"),
                )
            };
            let page = found.ok_or_else(missing)?;
            if context.ui.json {
                context.ui.document(page)?
            } else {
                context.ui.line(words(page))?
            }
            Ok(Exit::Ok)
        }
    }
}

fn list(context: &Context, pages: &[Page]) -> Outcome {
    if context.ui.json {
        context.ui.document(&pages)?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(["CODE", "TITLE"]);
    for page in pages {
        table.row([page.code.into(), page.title.into()]);
    }
    context.ui.line(table.render(&context.ui))?;
    Ok(Exit::Ok)
}

/// Every code there is, in order.
fn pages() -> Vec<Page> {
    let manifests = spec::codes::ALL.iter().map(|info| Page {
        code: info.code,
        title: info.title,
        cause: Some(info.cause),
        hint: info.fix,
        exit: Some(info.exit),
        http_status: None,
    });
    let server = ops::code::ALL.iter().map(|code| Page {
        code: code.id,
        title: code.title,
        cause: None,
        hint: code.hint,
        exit: None,
        http_status: (code.status != 0).then_some(code.status),
    });
    let own = codes::ALL.iter().map(|code| Page {
        code: code.id,
        title: code.title,
        cause: Some(code.cause),
        hint: code.hint,
        exit: Some(code.exit.code()),
        http_status: None,
    });
    let node = volary::CODES.iter().map(|code| Page {
        code: code.id,
        title: code.title,
        cause: None,
        hint: code.hint,
        exit: Some(crate::error::exit_of(code.class).code()),
        http_status: None,
    });
    let mut pages: Vec<Page> = manifests.chain(server).chain(node).chain(own).collect();
    pages.sort_by_key(|page| page.code);
    pages
}

fn words(page: &Page) -> String {
    let mut text = format!("{}: {}\n", page.code, page.title);
    if let Some(cause) = page.cause {
        text.push_str(&format!("\n{cause}\n"));
    }
    text.push_str(&format!("\nhint: {}", page.hint));
    if let Some(exit) = page.exit {
        text.push_str(&format!("\nexit code: {exit}"));
    }
    if let Some(status) = page.http_status {
        text.push_str(&format!("\nHTTP status: {status}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_parts_share_a_code() {
        let pages = pages();
        let shared: Vec<_> = pages
            .windows(2)
            .filter(|pair| pair[0].code == pair[1].code)
            .collect();
        assert!(shared.is_empty(), "{shared:?}");
    }
}
