"""The paper, equation by equation: traffic flow, Burgers, Cole-Hopf, local entropy, Langevin, homogenisation."""
