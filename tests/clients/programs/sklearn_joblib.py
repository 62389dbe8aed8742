"""scikit-learn with joblib's multiprocessing backend: cross validation and a grid search."""

import hashlib

import joblib
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict


def main():
    x, y = make_classification(3000, 40, n_informative=12, random_state=1)
    digest = hashlib.sha256()
    with joblib.parallel_backend("multiprocessing", n_jobs=2):
        search = GridSearchCV(
            LogisticRegression(max_iter=300), {"C": [0.01, 0.1, 1.0, 10.0]}, cv=5
        ).fit(x, y)
        digest.update(np.round(search.cv_results_["mean_test_score"], 10).tobytes())
        forest = RandomForestClassifier(60, random_state=1)
        digest.update(cross_val_predict(forest, x, y, cv=4).tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
