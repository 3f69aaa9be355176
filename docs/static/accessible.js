// Names for screen readers that the theme and the gallery leave out.
document.addEventListener("DOMContentLoaded", () => {
  for (const thumbnail of document.querySelectorAll(".sphx-glr-thumbcontainer")) {
    const title = thumbnail.querySelector(".sphx-glr-thumbnail-title")?.textContent;
    for (const link of thumbnail.querySelectorAll("a")) link.setAttribute("aria-label", title);
  }
  for (const summary of document.querySelectorAll("li.has-children > details > summary")) {
    const page = summary.closest("li").querySelector("a")?.textContent.trim();
    summary.setAttribute("aria-label", `Pages under ${page}`);
  }
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.setAttribute("aria-label", button.textContent.trim().replace(/\s+/g, " "));
  }
});
