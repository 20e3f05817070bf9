"""One folder a system, and the catalogue of them: importing any of these files registers all of them."""

from fastvtp.systems import catalogue as catalogue
