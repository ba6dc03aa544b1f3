"""How networks are trained: recipes, one harness for all of them, and sheets of what a manifold makes."""
