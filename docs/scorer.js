// How the search of the site ranks what has all the words: Sphinx alone sorts by the alphabet.
var Scorer = {
  // What is for users comes before what is for those who work on the code, and the page of tasks first.
  score: ([document, title, anchor, description, score]) => {
    if (document === "docs/how-do-i") return score + 20;
    if (document === "docs/notebooks/first_run" || document === "docs/notebooks/own_loop") return score - 1;
    return document.startsWith("docs/") ? score : score - 20;
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
