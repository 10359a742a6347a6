/* Search: the library comes first, then the guides, then the notebooks. The numbers below `score` are Sphinx's own. */

var Scorer = {
  score: function (result) {
    const page = result[0];
    const points = result[4];
    if (page.startsWith("api/")) {
      return points + 30;
    }
    return ["library", "recipes", "running"].includes(page) ? points + 15 : points;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
