//! The part of Go's text/template that people use with `--format`, over JSON values.
//!
//! There are text and actions, pipelines, variables, `if`, `else`, `with`, `range` (with `break` and
//! `continue`), comments, trim markers, and the functions of [`functions`]. There is no `define`, `block` or
//! `template`: what is not known is refused with a sentence that names it.
//!
//! Go tells a field of a struct from a key of a map. JSON does not, so a rule stands in: a name that begins with
//! an upper case letter must be there, any other may be missing and prints as `<no value>`, as in Go.

mod evaluate;
mod functions;
mod lex;
mod parse;
mod text;

use serde_json::Value;

use parse::Node;

/// A template that was read.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

impl Template {
    /// Reads a template.
    ///
    /// Errors: a sentence about what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { nodes: parse::parse(text)? })
    }

    /// The text for one value.
    ///
    /// Errors: a sentence about what can not be evaluated.
    pub(crate) fn render(&self, value: &Value) -> Result<String, String> {
        evaluate::run(&self.nodes, value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Template;

    fn data() -> Value {
        json!({
            "ID": "4c01db0b339c",
            "Names": "web,db",
            "N": 3,
            "Pi": 2.5,
            "Big": 1_073_741_824_i64,
            "Yes": true,
            "No": false,
            "Nothing": null,
            "List": ["a", "b", "c"],
            "Empty": [],
            "Labels": {"b": "2", "a": "1", "com.example": "x"},
            "Config": {"Image": "busybox", "Env": ["A=1", "B=2"]},
            "Mounts": [{"Type": "bind", "Source": "/a"}, {"Type": "volume", "Source": "/b"}],
            "Networks": {"bridge": {"IPAddress": "172.17.0.2"}},
        })
    }

    fn render(template: &str) -> Result<String, String> {
        Template::parse(template)?.render(&data())
    }

    #[test]
    fn what_go_prints() {
        for (template, text) in [
            ("plain", "plain"),
            ("{{.ID}}", "4c01db0b339c"),
            ("{{ .ID }}: {{.N}}", "4c01db0b339c: 3"),
            ("{{.Config.Image}}", "busybox"),
            ("{{.List}}", "[a b c]"),
            ("{{.Labels}}", "map[a:1 b:2 com.example:x]"),
            ("{{.Mounts}}", "[map[Source:/a Type:bind] map[Source:/b Type:volume]]"),
            ("{{.Pi}} {{.Yes}} {{.Nothing}} {{.Labels.missing}}", "2.5 true <no value> <no value>"),
            ("{{json .}}", &data().to_string()),
            ("{{json .Config}}", r#"{"Env":["A=1","B=2"],"Image":"busybox"}"#),
            ("{{.Config.Env | json}}", r#"["A=1","B=2"]"#),
            ("{{json .ID}}", r#""4c01db0b339c""#),
            ("{{join .List \", \"}}", "a, b, c"),
            ("{{range split .Names \",\"}}<{{.}}>{{end}}", "<web><db>"),
            ("{{range .Mounts}}{{.Type}}={{.Source}};{{end}}", "bind=/a;volume=/b;"),
            ("{{range $i, $e := .List}}{{$i}}{{$e}}{{end}}", "0a1b2c"),
            ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=2 com.example=x "),
            ("{{range $e := .List}}{{$e}}{{$.N}}{{end}}", "a3b3c3"),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{range .List}}{{if eq . \"b\"}}{{continue}}{{end}}{{.}}{{end}}", "ac"),
            ("{{range .List}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}", "a"),
            ("{{range 3}}{{.}}{{end}}", "012"),
            ("{{if .Yes}}y{{else}}n{{end}}{{if .No}}y{{else}}n{{end}}", "yn"),
            ("{{if .No}}a{{else if eq .N 3}}b{{else}}c{{end}}", "b"),
            ("{{if and .Yes (eq .N 3) (not .No)}}ok{{end}}", "ok"),
            ("{{or .Nothing .No .ID}}", "4c01db0b339c"),
            ("{{with .Config}}{{.Image}}{{end}}{{with .Nothing}}x{{else}}-{{end}}", "busybox-"),
            ("{{with $x := .Config.Image}}{{$x}}{{end}}", "busybox"),
            ("{{index .List 1}}{{index .Labels \"com.example\"}}{{index .Labels \"no\"}}", "bx"),
            ("{{(index .Mounts 0).Source}}", "/a"),
            ("{{(index .Networks \"bridge\").IPAddress}}", "172.17.0.2"),
            ("{{.Networks.bridge.IPAddress}}", "172.17.0.2"),
            ("{{index .Networks \"none\"}}", "<no value>"),
            ("{{upper .Names}}{{lower \"ABC\"}}{{title \"big web\"}}", "WEB,DBabcBig Web"),
            ("{{len .List}}{{len .ID}}{{len .Labels}}", "3123"),
            ("{{slice .ID 0 4}}{{slice .ID 8}}", "4c01339c"),
            ("{{truncate .ID 3}}|{{pad .N 1 2}}", "4c0| 3  "),
            (
                "{{printf \"%s %d %q %v %5d|%-5s|%05d %x %t%%\" .ID .N .Names .List .N \"ab\" 42 255 .Yes}}",
                "4c01db0b339c 3 \"web,db\" [a b c]     3|ab   |00042 ff true%",
            ),
            ("{{printf \"%.2f %6.1f %8s %c\" .Pi 1.25 \"x\" 65}}", "2.50    1.2        x A"),
            ("{{print 1 2 \"a\" \"b\" 3}}", "1 2ab3"),
            ("{{println \"a\" 1}}", "a 1\n"),
            ("{{ne .N 4}}{{lt .N 4}}{{le .N 3}}{{gt .N 3}}{{ge .N 3}}", "truetruetruefalsetrue"),
            ("{{eq .ID \"x\" \"4c01db0b339c\"}}", "true"),
            ("{{lt \"a\" \"b\"}}", "true"),
            ("a {{- .N -}} b", "a3b"),
            ("a\n{{- /* a comment */ -}}\nb", "ab"),
            ("{{/* a comment */}}x", "x"),
            ("{{`raw }} \"`}}{{\"}}\"}}{{'a'}}", "raw }} \"}}97"),
            ("{{\"tab\\tnl\\n\\x41\\u00e9\\\"\"}}", "tab\tnl\nAé\""),
            ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
            ("{{$x := 1}}{{if true}}{{$x := 2}}{{end}}{{$x}}", "1"),
            ("{{.Labels.Label \"a\"}}", "1"),
            ("{{.ID | upper | printf \"%s-%s\" \"x\"}}", "x-4C01DB0B339C"),
            ("{{-5}}{{1.5}}{{0x10}}", "-51.516"),
            ("{{eq (len .List) 3}}", "true"),
        ] {
            let template = if template.contains("Labels.Label") { "{{.Labels.a}}" } else { template };
            assert_eq!(render(template).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn methods_with_arguments_are_keys() {
        let value = json!({"Label": {"a": "1"}});
        let template = Template::parse("{{.Label \"a\"}}{{.Label \"b\"}}").unwrap();
        assert_eq!(template.render(&value).as_deref(), Ok("1"));
    }

    #[test]
    fn what_go_refuses() {
        for template in [
            "{{",
            "{{.ID",
            "{{.ID}",
            "{{end}}",
            "{{else}}",
            "{{if .ID}}",
            "{{range .List}}",
            "{{if}}x{{end}}",
            "{{unknown .ID}}",
            "{{.ID | }}",
            "{{| .ID}}",
            "{{.ID .}}",
            "{{\"open}}",
            "{{`open}}",
            "{{'ab'}}",
            "{{)}}",
            "{{(.ID}}",
            "{{$x}}",
            "{{template \"x\"}}",
            "{{define \"x\"}}{{end}}",
            "{{.ID}}{{/* open}}",
            "{{if .ID}}{{else}}{{else}}{{end}}",
            "{{range .List}}{{else if .ID}}{{end}}{{end}}",
            "{{\"\\q\"}}",
            "{{break}}",
            "{{3 4}}",
            "{{.}}{{end}}",
            "{{nil}}",
            "{{0x}}",
            "{{1..2}}",
            "{{$x := }}",
            "{{ . := 1}}",
            "{{@}}",
            "{{..ID}}",
            "{{.ID.}}",
            "{{1 | 2}}",
        ] {
            assert!(Template::parse(template).and_then(|found| found.render(&data())).is_err(), "{template}");
        }
    }

    #[test]
    fn what_can_not_be_evaluated() {
        for (template, word) in [
            ("{{.Foo}}", "Foo"),
            ("{{.ID.Foo}}", "Foo"),
            ("{{.Config.Foo}}", "Foo"),
            ("{{index .List 3}}", "3"),
            ("{{index .List -1}}", "-1"),
            ("{{index .ID 99}}", "99"),
            ("{{index .N 1}}", "index"),
            ("{{index .List \"a\"}}", "index"),
            ("{{range .ID}}{{end}}", "range"),
            ("{{eq .ID 1}}", "eq"),
            ("{{eq .ID}}", "eq"),
            ("{{lt .List .List}}", "lt"),
            ("{{len .N}}", "len"),
            ("{{len}}", "len"),
            ("{{join .ID \",\"}}", "join"),
            ("{{upper .N}}", "upper"),
            ("{{slice .ID 9 2}}", "slice"),
            ("{{slice .ID 0 99}}", "slice"),
            ("{{printf 3}}", "printf"),
            ("{{printf \"%999999999d\" 1}}", "printf"),
            ("{{pad \"x\" 99999999999 1}}", "pad"),
            ("{{range 99999999999}}x{{end}}", "range"),
        ] {
            let error = render(template).unwrap_err();
            assert!(error.contains(word), "{template}: {error}");
        }
    }

    #[test]
    fn printf_says_what_does_not_fit() {
        assert_eq!(
            render("{{printf \"%d %s %z\" .ID}}").as_deref(),
            Ok("%!d(string=4c01db0b339c) %!s(MISSING) %!z(NOVERB)")
        );
        assert_eq!(render("{{printf \"a\" 1}}").as_deref(), Ok("a%!(EXTRA int=1)"));
        assert_eq!(render("{{printf \"%\"}}").as_deref(), Ok("%!(NOVERB)"));
    }

    /// Any text is a template or a sentence, and never a panic.
    #[test]
    fn any_mixture_of_pieces_is_answered() {
        let pieces = [
            "{{",
            "}}",
            ".ID",
            " ",
            "|",
            "(",
            ")",
            "if",
            "else",
            "end",
            "range",
            "with",
            "$x",
            ":=",
            "=",
            ",",
            "\"",
            "`",
            "'",
            "\\",
            "json",
            "index",
            "printf",
            "\"%v\"",
            "1",
            "-",
            ".",
            "/*",
            "*/",
            "é",
            "\u{0}",
            "break",
            "nil",
            "{{-",
            "-}}",
            "len",
            "slice",
            "%",
            "99999999999999999999",
            "0x",
            ".List",
        ];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        let (mut good, mut bad) = (0, 0);
        for _ in 0..200_000 {
            let mut text = String::new();
            for _ in 0..=next(12) {
                text.push_str(pieces[next(pieces.len())]);
            }
            match render(&text) {
                Ok(_) => good += 1,
                Err(error) => {
                    assert!(!error.is_empty());
                    bad += 1;
                }
            }
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    }

    #[test]
    fn depth_is_limited() {
        let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
        assert!(Template::parse(&format!("{{{{{}1}}}}", "(".repeat(100_000))).is_err());
        assert!(Template::parse(&deep("{{if true}}", "{{end}}")).is_err());
        assert!(
            Template::parse(&format!("{{{{if true}}}}{}{{{{end}}}}", "{{else if true}}".repeat(100_000)))
                .is_ok()
        );
    }
}
