// A button beside each table that saves it as CSV; it works without a server.
document.addEventListener("DOMContentLoaded", () => {
  const quoted = (cell) => `"${cell.textContent.trim().replace(/\s+/g, " ").replace(/"/g, '""')}"`;
  document.querySelectorAll("article table").forEach((table, index) => {
    const button = document.createElement("button");
    button.className = "csv";
    button.textContent = "CSV";
    button.title = "Save this table as CSV";
    button.addEventListener("click", () => {
      const rows = [...table.rows].map((row) =>
        [...row.cells].flatMap((cell) => [quoted(cell), ...Array(cell.colSpan - 1).fill('""')]).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
      link.download = `${location.pathname.split("/").pop().replace(".html", "") || "index"}-${index + 1}.csv`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
    (table.closest(".wide, .table-wrapper") || table).before(button);
  });
});
