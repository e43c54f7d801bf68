//! Rust text taken apart just far enough for the rules: what is code and what a string or comment,
//! what is compiled for tests only, which paths are named, what is defined. Not a parser.

/// Rust code with comments and the contents of strings blanked out, offsets unchanged: one ASCII
/// character for each character of the source.
pub(crate) struct Code {
    text: String,
    /// Each string with the offset of its opening quote.
    strings: Vec<(usize, String)>,
}

/// A path as code names it, groups spelled out: `use a::{b, c}` is `a::b` and `a::c`.
pub(crate) struct Named {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

impl Named {
    /// `pattern` stands somewhere in the path, segment by segment.
    pub(crate) fn names(&self, pattern: &str) -> bool {
        let pattern: Vec<&str> = pattern.split("::").collect();
        self.segments
            .windows(pattern.len())
            .any(|window| window == pattern)
    }

    /// The path begins so.
    pub(crate) fn starts_with(&self, pattern: &str) -> bool {
        let mut segments = self.segments.iter();
        pattern
            .split("::")
            .all(|expected| segments.next().is_some_and(|found| found == expected))
    }

    pub(crate) fn text(&self) -> String {
        self.segments.join("::")
    }
}

impl Code {
    pub(crate) fn of(source: &str) -> Self {
        let source: Vec<char> = source.chars().collect();
        let mut code = Self {
            text: String::with_capacity(source.len()),
            strings: Vec::new(),
        };
        let mut at = 0;
        while at < source.len() {
            let rest = &source[at..];
            let length = match rest {
                ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
                ['/', '*', ..] => block_comment(rest),
                ['"', ..] => code.string(at, rest, 1),
                ['r', ..] if !after_word(&code.text) => code.raw_string(at, rest),
                ['\'', ..] => character(rest),
                _ => 0,
            };
            let (blank, kept) = if length == 0 { (0, 1) } else { (length, 0) };
            code.text.extend(
                rest[..blank]
                    .iter()
                    .map(|&c| if c == '\n' { c } else { ' ' }),
            );
            code.text.extend(
                rest[..kept]
                    .iter()
                    .map(|&c| if c.is_ascii() { c } else { ' ' }),
            );
            at += blank + kept;
        }
        code
    }

    /// Notes the string that begins here and says how long it is, quotes included.
    fn string(&mut self, at: usize, rest: &[char], quote: usize) -> usize {
        let mut end = quote;
        while end < rest.len() && rest[end] != '"' {
            end += if rest[end] == '\\' { 2 } else { 1 };
        }
        let end = end.min(rest.len());
        self.strings.push((at, rest[quote..end].iter().collect()));
        (end + 1).min(rest.len())
    }

    /// The same for `r"…"` and `r#"…"#`; zero if this is no raw string.
    fn raw_string(&mut self, at: usize, rest: &[char]) -> usize {
        let hashes = rest[1..].iter().take_while(|&&c| c == '#').count();
        let start = 1 + hashes;
        if rest.get(start) != Some(&'"') {
            return 0;
        }
        let closes = |end: usize| {
            rest[end] == '"' && rest[end + 1..].iter().take_while(|&&c| c == '#').count() >= hashes
        };
        let end = (start + 1..rest.len())
            .find(|&end| closes(end))
            .unwrap_or(rest.len());
        self.strings
            .push((at, rest[start + 1..end].iter().collect()));
        (end + 1 + hashes).min(rest.len())
    }

    /// Blanks what is compiled for tests only; returns the modules declared so without a body.
    pub(crate) fn remove_tests(&mut self) -> Vec<String> {
        let mut modules = Vec::new();
        let mut from = 0;
        while let Some(found) = self.text[from..].find("#[cfg(") {
            let start = from + found;
            let attribute = start + balanced(&self.text[start + 1..]) + 1;
            from = attribute;
            let condition = &self.text[start..attribute];
            if !words(condition).any(|(_, word)| word == "test") || condition.contains("not(") {
                continue;
            }
            let end = attribute + item(&self.text[attribute..]);
            let body: Vec<&str> = words(&self.text[attribute..end])
                .map(|(_, word)| word)
                .take(4)
                .collect();
            if let Some(at) = body.iter().position(|&word| word == "mod")
                && self.text[..end].ends_with(';')
            {
                modules.extend(body.get(at + 1).map(|&name| name.to_owned()));
            }
            let blank: String = self.text[start..end]
                .chars()
                .map(|c| if c == '\n' { c } else { ' ' })
                .collect();
            self.text.replace_range(start..end, &blank);
            self.strings.retain(|&(at, _)| at < start || at >= end);
        }
        modules
    }

    /// Every path of two segments or more, and what `use` and `extern crate` name alone.
    pub(crate) fn paths(&self) -> Vec<Named> {
        let mut found = Vec::new();
        let mut before = "";
        let mut past = 0;
        for (at, word) in words(&self.text) {
            let inner = self.text[..at].ends_with("::") && continues(&self.text[..at]);
            if at >= past && !inner && !word.starts_with(|c: char| c.is_ascii_digit()) {
                let mut paths = Vec::new();
                past = at + read_path(&self.text[at..], &[], &mut paths);
                let line = self.line(at);
                let imported = before == "use" || before == "crate";
                paths.retain(|segments| segments.len() > 1 || imported);
                found.extend(paths.into_iter().map(|segments| Named { line, segments }));
            }
            before = word;
        }
        found
    }

    /// Every definition: line, the word that introduces it (`fn`, `struct`, …), its name.
    pub(crate) fn definitions(&self) -> Vec<(usize, &str, &str)> {
        const INTRODUCERS: [&str; 7] = ["fn", "struct", "enum", "trait", "type", "union", "mod"];
        let words: Vec<(usize, &str)> = words(&self.text).collect();
        words
            .windows(2)
            .filter(|pair| INTRODUCERS.contains(&pair[0].1))
            .filter(|pair| {
                self.text[pair[0].0 + pair[0].1.len()..pair[1].0]
                    .trim()
                    .is_empty()
            })
            .map(|pair| (self.line(pair[1].0), pair[0].1, pair[1].1))
            .collect()
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text[..at].matches('\n').count()
    }
}

/// The words of the code with their offsets.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split(|c| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn after_word(text: &str) -> bool {
    // `br"…"` and `cr"…"` are strings, too.
    let word: String = text.chars().rev().take_while(|&c| is_word(c)).collect();
    !(word.is_empty() || word == "b" || word == "c")
}

/// `…::` is the middle of a path, and not the two colons in front of one.
fn continues(text: &str) -> bool {
    let before = text.trim_end_matches(':').trim_end();
    let kept = before
        .chars()
        .next_back()
        .is_some_and(|c| is_word(c) || "}>".contains(c));
    kept && before.len() + 2 == text.len()
}

/// Reads the path that begins here into `found`; returns how long it is.
fn read_path(text: &str, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut segments = prefix.to_vec();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        let rest = &text[at..];
        let word: String = rest.chars().take_while(|&c| is_word(c)).collect();
        if rest.starts_with('{') && at > 0 {
            at += read_group(rest, &segments, found);
            return at;
        } else if rest.starts_with('<') {
            at += balanced(rest).max(1);
        } else if rest.starts_with('*') {
            at += 1;
            segments.push("*".to_owned());
        } else if word.is_empty() {
            break;
        } else {
            at += word.len();
            // `a::{self}` is `a` itself.
            if word != "self" || segments.is_empty() {
                segments.push(word);
            }
        }
        if !text[at..].starts_with("::") {
            break;
        }
        at += 2;
    }
    found.push(segments);
    at
}

fn read_group(text: &str, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let end = balanced(text);
    let mut at = 1;
    while at + 1 < end {
        let rest = &text[at..end - 1];
        if rest.starts_with(|c: char| is_word(c) || c == '*') {
            at += read_path(rest, prefix, found).max(1);
            // What follows up to the comma is a new name for it.
            at += text[at..end - 1].find(',').unwrap_or(end - 1 - at);
        } else {
            at += 1;
        }
    }
    end
}

/// The length of the bracketed text that begins here, brackets included.
fn balanced(text: &str) -> usize {
    let angles = text.starts_with('<');
    let mut depth = 0_usize;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            '<' if angles => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '>' if angles && before != '-' && before != '=' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
        before = c;
    }
    text.len()
}

/// The length of the item, field or statement that begins here, attributes in front included.
fn item(text: &str) -> usize {
    const ITEMS: [&str; 15] = [
        "pub",
        "mod",
        "fn",
        "use",
        "impl",
        "struct",
        "enum",
        "trait",
        "const",
        "static",
        "async",
        "unsafe",
        "type",
        "extern",
        "macro_rules",
    ];
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if !text[at..].starts_with("#[") {
            break;
        }
        at += 1 + balanced(&text[at + 1..]);
    }
    let is_item = words(&text[at..])
        .next()
        .is_some_and(|(_, word)| ITEMS.contains(&word));
    // The braces of a constant's value are not its end.
    let mut heading = words(&text[at..])
        .map(|(_, word)| word)
        .filter(|word| !matches!(*word, "pub" | "crate" | "super" | "in"));
    let ends_at_semicolon = match (heading.next(), heading.next()) {
        (Some("const"), Some("fn" | "unsafe" | "async" | "extern")) => false,
        (Some(word), _) => matches!(word, "use" | "const" | "static" | "type"),
        (None, _) => false,
    };
    while at < text.len() {
        let c = text.as_bytes()[at];
        match c {
            b';' => return at + 1,
            b',' if !is_item => return at + 1,
            b')' | b']' | b'}' => return at,
            b'{' if !ends_at_semicolon => return at + balanced(&text[at..]),
            b'(' | b'[' | b'{' => at += balanced(&text[at..]),
            _ => at += 1,
        }
    }
    text.len()
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// The length of a character literal; zero for a lifetime.
fn character(rest: &[char]) -> usize {
    match rest {
        [_, '\\', _, tail @ ..] => tail
            .iter()
            .position(|&c| c == '\'')
            .map_or(rest.len(), |end| end + 4),
        [_, _, '\'', ..] => 3,
        _ => 0,
    }
}

#[test]
fn comments_strings_and_characters_are_not_code() {
    let code = Code::of(
        "a::b /* c::d /* e */ f::g */ \"h::\\\"i\" r#\"j::\"k\"# b'\"' '\\'' '\\u{7f}' l::<'m>() // n::o\np::q",
    );
    let words: Vec<&str> = words(&code.text).map(|(_, word)| word).collect();
    assert_eq!(words, ["a", "b", "b", "l", "m", "p", "q"]);
    let strings: Vec<&str> = code
        .strings
        .iter()
        .map(|(_, string)| string.as_str())
        .collect();
    assert_eq!(strings, ["h::\\\"i", "j::\"k"]);
    assert_eq!(code.paths().last().map(|path| path.line), Some(2));
}

#[test]
fn paths_are_read_with_their_groups() {
    let code = Code::of(
        "use a::{b, c::{self, d as e}, f::*}; use g; fn h(i: ::j::K<l::M>) { n.o(); p::Q::<r::S>::t() }",
    );
    let paths: Vec<String> = code.paths().iter().map(Named::text).collect();
    let expected = [
        "a::b", "a::c", "a::c::d", "a::f::*", "g", "j::K", "l::M", "p::Q::t",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn test_code_is_removed_and_nothing_else() {
    let mut code = Code::of(
        "struct A { #[cfg(test)] b: c::D, e: f::G }\n\
         #[cfg(test)] mod suite;\n\
         #[cfg(not(test))] use h::i;\n\
         #[cfg(test)] #[derive(Debug)] struct J { k: l::M }\n\
         #[cfg(all(test, unix))] use n::{o, p};\n\
         #[cfg(test)] mod tests { fn q() { r::s() } }\n\
         #[cfg(test)] pub(crate) const fn w() -> x::Y { z::A }\n\
         #[cfg(test)] const B: [c::D; 2] = [c::D { e: 1 }, f::g()];\n\
         fn t() { u::v() }",
    );
    assert_eq!(code.remove_tests(), ["suite"]);
    let paths: Vec<String> = code.paths().iter().map(Named::text).collect();
    assert_eq!(paths, ["f::G", "h::i", "u::v"]);
}
