"""From run folders to an answer: tables, statistics, figures and reports. Reads folders; imports no trainer."""
