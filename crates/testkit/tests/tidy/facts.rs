//! One pass over a file's syntax, giving flat facts that the rules filter.
//!
//! What stands inside a macro call is not parsed by `syn`; its tokens are scanned for paths and method calls, so that a
//! `select!` hides nothing.

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Something that the syntax of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A path in use, such as `tokio::time::sleep`.
    Path(String),
    /// A path that is imported or exported again.
    Import(String),
    /// A method call and its first argument where that is a string.
    Method(String, Option<String>),
    /// A macro call, its path as written.
    Macro(String),
    /// An attribute, its path as written.
    Attribute(String),
    /// A function: its name, its lines from signature to closing brace, its arguments.
    Function {
        name: String,
        lines: usize,
        arguments: usize,
    },
    /// A trait that others can see; `sealed` ones cannot be implemented outside.
    PublicTrait { name: String, sealed: bool },
}

/// A fact, where it stands, and whether only tests see it.
#[derive(Debug)]
pub struct Fact {
    pub line: usize,
    pub in_test: bool,
    pub kind: Kind,
}

/// All facts of a file.
#[derive(Debug, Default)]
pub struct Facts {
    pub all: Vec<Fact>,
    /// Lines that belong to `#[cfg(test)]` items.
    pub test_lines: usize,
    /// Whether the file opens with a module doc.
    pub has_module_doc: bool,
}

impl Facts {
    /// The paths that are used or imported.
    pub fn paths(&self) -> impl Iterator<Item = (&Fact, &str)> {
        self.all.iter().filter_map(|fact| match &fact.kind {
            Kind::Path(path) | Kind::Import(path) => Some((fact, path.as_str())),
            _ => None,
        })
    }
}

/// Reads the facts of one file.
pub fn of(text: &str) -> syn::Result<Facts> {
    let file = syn::parse_file(text)?;
    let mut reader = Reader::default();
    reader.facts.has_module_doc = file.attrs.iter().any(|attr| attr.path().is_ident("doc"));
    reader.visit_file(&file);
    Ok(reader.facts)
}

#[derive(Default)]
struct Reader {
    facts: Facts,
    test_depth: usize,
}

impl Reader {
    fn push(&mut self, span: proc_macro2::Span, kind: Kind) {
        self.facts.all.push(Fact {
            line: span.start().line,
            in_test: self.test_depth > 0,
            kind,
        });
    }

    /// Runs `read` as test code if the attributes say so.
    fn within(
        &mut self,
        attrs: &[syn::Attribute],
        span: proc_macro2::Span,
        read: impl FnOnce(&mut Self),
    ) {
        if !attrs.iter().any(only_in_tests) {
            return read(self);
        }
        if self.test_depth == 0 {
            self.facts.test_lines += lines(span);
        }
        self.test_depth += 1;
        read(self);
        self.test_depth -= 1;
    }

    fn function(&mut self, sig: &syn::Signature, whole: proc_macro2::Span) {
        let lines = whole.end().line + 1 - sig.span().start().line;
        let kind = Kind::Function {
            name: sig.ident.to_string(),
            lines,
            arguments: sig.inputs.len(),
        };
        self.push(sig.span(), kind);
    }

    fn import(&mut self, prefix: &str, tree: &syn::UseTree) {
        let join = |name: String| {
            if prefix.is_empty() {
                name
            } else {
                format!("{prefix}::{name}")
            }
        };
        match tree {
            syn::UseTree::Path(path) => self.import(&join(path.ident.to_string()), &path.tree),
            syn::UseTree::Name(name) => {
                self.push(name.span(), Kind::Import(join(name.ident.to_string())))
            }
            syn::UseTree::Rename(name) => {
                self.push(name.span(), Kind::Import(join(name.ident.to_string())))
            }
            syn::UseTree::Glob(glob) => self.push(glob.span(), Kind::Import(join("*".to_owned()))),
            syn::UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|tree| self.import(prefix, tree)),
        }
    }

    /// Paths and method calls among tokens that nobody parsed.
    fn tokens(&mut self, stream: TokenStream) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            match &trees[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let after_dot = at > 0 && is_punct(&trees[at - 1], '.');
                    let (path, next) = path_at(&trees, at);
                    let kind = if after_dot {
                        Kind::Method(path, string_in(trees.get(next)))
                    } else {
                        Kind::Path(path)
                    };
                    self.push(first.span(), kind);
                    at = next;
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        self.within(attributes(item), item.span(), |reader| {
            visit::visit_item(reader, item)
        });
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attrs = if let syn::ImplItem::Fn(function) = item {
            function.attrs.as_slice()
        } else {
            &[]
        };
        self.within(attrs, item.span(), |reader| {
            visit::visit_impl_item(reader, item)
        });
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.function(&item.sig, item.span());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        if matches!(item.vis, syn::Visibility::Public(_)) {
            let sealed = item.supertraits.iter().any(|bound| match bound {
                syn::TypeParamBound::Trait(bound) => {
                    text_of(&bound.path).to_lowercase().contains("sealed")
                }
                _ => false,
            });
            self.push(
                item.ident.span(),
                Kind::PublicTrait {
                    name: item.ident.to_string(),
                    sealed,
                },
            );
        }
        visit::visit_item_trait(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import("", &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.push(path.span(), Kind::Path(text_of(path)));
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let first = call.args.first().and_then(|argument| match argument {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(text),
                ..
            }) => Some(text.value()),
            _ => None,
        });
        self.push(
            call.method.span(),
            Kind::Method(call.method.to_string(), first),
        );
        visit::visit_expr_method_call(self, call);
    }

    fn visit_attribute(&mut self, attr: &'ast syn::Attribute) {
        self.push(attr.span(), Kind::Attribute(text_of(attr.path())));
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.push(mac.span(), Kind::Macro(text_of(&mac.path)));
        self.tokens(mac.tokens.clone());
    }
}

/// The attributes of an item, whichever it is.
fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]`, `#[cfg(all(test, …))]`, `#[test]`, `#[tokio::test]`.
fn only_in_tests(attr: &syn::Attribute) -> bool {
    if attr
        .path()
        .segments
        .last()
        .is_some_and(|last| last.ident == "test")
    {
        return true;
    }
    let syn::Meta::List(list) = &attr.meta else {
        return false;
    };
    let words: Vec<String> = list
        .tokens
        .to_string()
        .split(|c: char| !c.is_alphanumeric())
        .map(str::to_owned)
        .collect();
    list.path.is_ident("cfg")
        && words.iter().any(|word| word == "test")
        && !words.iter().any(|word| word == "not")
        && !words.iter().any(|word| word == "any")
}

fn text_of(path: &syn::Path) -> String {
    let names: Vec<String> = path
        .segments
        .iter()
        .map(|segment| segment.ident.to_string())
        .collect();
    names.join("::")
}

fn lines(span: proc_macro2::Span) -> usize {
    span.end().line + 1 - span.start().line
}

fn is_punct(tree: &TokenTree, wanted: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// The path that starts at `at`, and the index after it.
fn path_at(trees: &[TokenTree], at: usize) -> (String, usize) {
    let mut path = trees[at].to_string();
    let mut next = at + 1;
    while let [colon, second, TokenTree::Ident(ident), ..] = &trees[next..] {
        if !is_punct(colon, ':') || !is_punct(second, ':') {
            break;
        }
        path = format!("{path}::{ident}");
        next += 3;
    }
    (path, next)
}

/// The string that opens a group of arguments.
fn string_in(tree: Option<&TokenTree>) -> Option<String> {
    let Some(TokenTree::Group(group)) = tree else {
        return None;
    };
    let first = group.stream().into_iter().next()?;
    let literal: syn::LitStr = syn::parse2(TokenStream::from(first)).ok()?;
    Some(literal.value())
}

#[test]
fn macros_and_imports_hide_nothing() {
    let facts = of("//! Doc.\nuse std::{fs, time::{Instant as I}};\nfn f() { select! { _ = tokio::time::sleep(d) => x.counter(\"n\", 1) } }")
        .expect("it parses");
    let kinds: Vec<&Kind> = facts.all.iter().map(|fact| &fact.kind).collect();
    assert!(facts.has_module_doc);
    for imported in ["std::fs", "std::time::Instant"] {
        let wanted = Kind::Import(imported.to_owned());
        assert!(kinds.contains(&&wanted), "{imported} in {kinds:?}");
    }
    let wanted = Kind::Path("tokio::time::sleep".to_owned());
    assert!(kinds.contains(&&wanted), "{kinds:?}");
    assert!(
        kinds.contains(&&Kind::Method("counter".to_owned(), Some("n".to_owned()))),
        "{kinds:?}"
    );
}

#[test]
fn test_items_are_marked_and_their_lines_counted() {
    let facts = of("//! Doc.\nfn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(not(test))]\nfn c() {}\n").expect("it parses");
    assert_eq!(facts.test_lines, 4);
    let marked: Vec<(String, bool)> = facts
        .all
        .iter()
        .filter_map(|fact| match &fact.kind {
            Kind::Function { name, .. } => Some((name.clone(), fact.in_test)),
            _ => None,
        })
        .collect();
    assert_eq!(
        marked,
        [
            ("a".to_owned(), false),
            ("b".to_owned(), true),
            ("c".to_owned(), false)
        ]
    );
}
