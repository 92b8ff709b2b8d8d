// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
	"strconv"
)

// Stat is what many rounds say together.
type Stat struct {
	Median float64 `json:"median"`
	// Half of the rounds are between Low and High: the first and third quartile.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// With a probability of 99 % the true median is between SureLow and SureHigh, whatever the
	// distribution of the rounds: order statistics of the binomial.
	SureLow  float64 `json:"sure_low"`
	SureHigh float64 `json:"sure_high"`
	Rounds   int     `json:"rounds"`
	// Wide: the middle half of the rounds is wider than wideSpread of the median.
	Wide bool `json:"wide,omitempty"`
}

const wideSpread = 0.3

func newStat(values []float64) Stat {
	s := slices.Clone(values)
	slices.Sort(s)
	n := len(s)
	if n == 0 {
		return Stat{}
	}
	// 2.576 standard deviations of a fair coin thrown n times.
	reach := int(math.Ceil(2.576*math.Sqrt(float64(n))/2)) + 1
	st := Stat{
		Median: (s[(n-1)/2] + s[n/2]) / 2, Low: s[n/4], High: s[n-1-n/4],
		SureLow: s[max(0, n/2-reach)], SureHigh: s[min(n-1, (n-1)/2+reach)],
		Rounds: n,
	}
	st.Wide = st.High-st.Low > wideSpread*math.Abs(st.Median)
	for _, v := range []*float64{&st.Median, &st.Low, &st.High, &st.SureLow, &st.SureHigh} {
		*v = significant(*v)
	}
	return st
}

// significant leaves out digits that are noise.
func significant(v float64) float64 {
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 5, 64), 64)
	return v
}

// ratio is that of two variants, net of the floor, round by round.
func ratio(a, b, floor []float64) Stat {
	var all []float64
	for i := range min(len(a), len(b), len(floor)) {
		// A base of nothing has no ratio to anything.
		if base := b[i] - floor[i]; base > 1 {
			all = append(all, (a[i]-floor[i])/base)
		}
	}
	return newStat(all)
}

func netOf(a, floor []float64) Stat {
	all := make([]float64, 0, len(a))
	for i := range min(len(a), len(floor)) {
		all = append(all, a[i]-floor[i])
	}
	return newStat(all)
}
