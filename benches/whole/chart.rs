//! Draws lines as SVG: the share of traces that are not whole, on a logarithmic scale, against the skew.

/// A line of the chart.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// Skew in seconds, and the share of traces that are not whole.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Size of the chart and of its margins, in pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;

/// The powers of ten on the vertical axis: from 100 % not whole to 0.001 %. What is below is drawn at the bottom.
const DECADES: i32 = 5;

/// Colours that people who confuse red and green can tell apart too (Okabe and Ito, and two more).
const COLOURS: [&str; 9] =
    ["#000000", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#0072b2", "#4b3f72", "#999999", "#009e73"];

/// Returns the chart of traces within `near` seconds of a change.
pub(crate) fn draw(near: u64, lines: &[Line]) -> String {
    let longest = lines.iter().flat_map(|line| &line.points).map(|(skew, _)| *skew).fold(1.0, f64::max);
    let x = |skew: f64| LEFT + (WIDTH - LEFT - RIGHT) * skew / longest;
    let y = |share: f64| {
        let decades = -share.max(f64::MIN_POSITIVE).log10() / f64::from(DECADES);
        TOP + (HEIGHT - TOP - BOTTOM) * decades.clamp(0.0, 1.0)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let mut add = |element: String| {
        svg.push_str(&element);
        svg.push('\n');
    };
    add(format!("<text x=\"{LEFT}\" y=\"22\">whole traces of moved slots within {near} s of a change</text>"));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for decade in 0..=DECADES {
        let share = 10_f64.powi(-decade);
        let at = y(share);
        let decimals = usize::try_from((decade - 2).max(0)).unwrap_or(0);
        let label =
            if decade == DECADES { "all".to_owned() } else { format!("{:.decimals$} %", 100.0 - share * 100.0) };
        add(format!("<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"));
        add(format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0));
    }
    let ticks = lines.first().map(|line| line.points.as_slice()).unwrap_or_default();
    for (skew, _) in ticks {
        add(format!("<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{skew}</text>", x(*skew), bottom + 20.0));
    }
    let middle = f64::midpoint(LEFT, right);
    let what = "time by which replicas learn of a change at different times, in seconds";
    add(format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{what}</text>", bottom + 44.0));
    for (n, (line, colour)) in lines.iter().zip(COLOURS).enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|(skew, share)| format!("{:.1},{:.1}", x(*skew), y(*share))).collect();
        let points = points.join(" ");
        add(format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"));
        let at = TOP + 20.0 * f64::from(u32::try_from(n).unwrap_or(0)) + 6.0;
        let from = right + 14.0;
        add(format!(
            "<line x1=\"{from}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            from + 20.0
        ));
        add(format!("<text x=\"{}\" y=\"{}\">{}</text>", from + 26.0, at + 4.0, line.name));
    }
    svg.push_str("</svg>\n");
    svg
}
